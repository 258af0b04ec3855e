"""How long reads take while many are forked and one VMM hangs in its load: ./run bench reads [--json]

A source is forked `--count` ways by a daemon; the VMM of one more child is stopped by SIGSTOP when it waits
for its load, so that it answers nothing. A reader asks for the source all the time, a few milliseconds after
each answer, before the burst and during it; it goes before others that want a processor, so that the daemon's
answers are measured and not its own turns. The last line is one JSON object.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.measure import vmm_pids
from examples.demo import address, ask, daemon, enter_own_namespace, make_image, wait_listening
from ramet.cli.bench import delete_all
from ramet.cli.figures import percentile
from ramet.cli.output import print_table
from ramet.client.client import Client
from ramet.linux.priority import go_first
from ramet.wire_api.instances import CreateInstance

SOURCE: Final = "source"
HUNG: Final = "hung"
REST_S: Final = 0.005
NICENESS: Final = -19
IDLE_S: Final = 2.0
APPEAR_TIMEOUT_S: Final = 30.0


@dataclass(slots=True)
class Reader:
    """Reads the source in a thread of its own, inside."""

    client: Client
    took_s: list[float] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> "Reader":
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._thread is not None, "it was entered"
        self._ended.set()
        self._thread.join()

    def _read(self) -> None:
        go_first(NICENESS)  # What this thread waits is not meant.
        while not self._ended.wait(REST_S):
            began = time.perf_counter()
            self.client.get(SOURCE)
            self.took_s.append(time.perf_counter() - began)


def main() -> int:
    options = _parse()
    if os.getsid(0) != os.getpid():
        return _run_in_own_session()
    enter_own_namespace()
    work = Path(tempfile.mkdtemp(prefix="ramet-bench-"))
    idle: list[float] = []
    busy: list[float] = []
    succeeded = 0
    try:
        make_image(work / "image")
        with daemon(work, (sys.executable, "-m", "ramet.cli")) as (client, _):
            client.import_image(str(work / "image"), "demo:1")
            client.create(
                CreateInstance(name=SOURCE, image="demo:1", size="256MB", overlay_size="1GB", vcpus=1)
            )
            source = client.get(SOURCE)
            wait_listening(address(source))
            ask(address(source), "POST", "/token", "warm")
            client.fork_many(SOURCE, 1, "first")
            for number in range(options.rounds):
                with Reader(client) as reader:
                    time.sleep(IDLE_S)
                idle += reader.took_s
                with Reader(client) as reader:
                    succeeded += _burst(client, options.count, f"child-{number}")
                busy += reader.took_s
    finally:
        shutil.rmtree(work, ignore_errors=True)
    wanted = options.count * options.rounds
    report = {
        "forks": wanted,
        "succeeded": succeeded,
        "idle_s": _figures(idle),
        "burst_s": _figures(busy),
        "cores": os.cpu_count(),
        "load1": round(os.getloadavg()[0], 2),
    }
    if not options.json:
        names = ("count", "p50", "p99", "max")
        rows = [(when, *(report[f"{when}_s"][name] for name in names)) for when in ("idle", "burst")]
        print_table(("READS", *(name.upper() for name in names)), [tuple(map(str, row)) for row in rows])
    print(json.dumps(report))
    return 0 if succeeded == wanted else 1


def _run_in_own_session() -> int:
    """Run this again as leader of a session, which can be let go first without anybody else's."""
    with subprocess.Popen([sys.executable, *sys.argv], start_new_session=True) as again:
        signal.signal(signal.SIGINT, lambda number, _: again.send_signal(number))
        return again.wait()


def _burst(client: Client, count: int, prefix: str) -> int:
    """Fork the source some ways while the VMM of one more child hangs; returns how many were made."""
    hanging = threading.Thread(target=client.fork_many, args=(SOURCE, 1, HUNG))
    hanging.start()
    pid = _hang(client)
    try:
        result = client.fork_many(SOURCE, count, prefix)
    finally:
        os.kill(pid, signal.SIGCONT)
        hanging.join()
    made = [fork.instance.id for fork in result.forks if fork.instance is not None]
    delete_all(client, [*made, client.get(f"{HUNG}-1").id])
    return len(made)


def _hang(client: Client) -> int:
    """Stop the VMM of the child that is to hang, as soon as there is one; returns its pid."""
    until = time.monotonic() + APPEAR_TIMEOUT_S
    while time.monotonic() < until:
        found = [instance.id for instance in client.list() if instance.name == f"{HUNG}-1"]
        for pid in vmm_pids(found) if found else ():
            os.kill(pid, signal.SIGSTOP)
            return pid
        time.sleep(0.001)
    raise SystemExit("the VMM that was to hang did not come")


def _figures(took_s: Sequence[float]) -> dict[str, Any]:
    return {
        "count": len(took_s),
        "p50": round(percentile(took_s, 0.5), 5),
        "p99": round(percentile(took_s, 0.99), 5),
        "max": round(max(took_s), 5),
    }


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run bench reads", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=24, help="forks beside the one that hangs (default 24)")
    parser.add_argument("--rounds", type=int, default=3, help="bursts (default 3)")
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    options = parser.parse_args()
    if options.count < 1 or options.rounds < 1:
        parser.error("--count and --rounds: at least 1")
    if os.geteuid() != 0:
        parser.error("it makes network interfaces and VMs: run it as root")
    return options


if __name__ == "__main__":
    sys.exit(main())
