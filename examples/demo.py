"""The main job from end to end: an image becomes a running VM, and the running VM becomes many.

Run by `./run demo [--count N] [--json]`. Everything happens in a network namespace and a data folder of its
own, and is gone afterwards: a daemon is started, a small image made and run, the running VM forked, every
child checked over HTTP at its own address, and the source asked all the while.
"""

import argparse
import contextlib
import http.client
import json
import math
import os
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.make_image import busybox_files, make_oci_layout
from native.build import build_example
from ramet.client.client import Client
from ramet.client.endpoint import Endpoint
from ramet.core.errors import RametError
from ramet.vmm.qemu.driver import find_accelerator
from ramet.wire_api.instances import CreateInstance, ForkResult, Instance

OWN_NAMESPACE: Final = "RAMET_DEMO_NAMESPACE"
SERVICE_PORT: Final = 8080
START_TIMEOUT_S: Final = 180.0
"""Of a daemon; an emulated host takes more than a minute if another has its processors."""
ANSWER_TIMEOUT_S: Final = 30.0
PING_INTERVAL_S: Final = 0.05
PROGRESS_INTERVAL_S: Final = 0.5
FIELDS_OF_ITS_OWN: Final = ("ip", "mac", "hostname", "machine_id", "random")


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=25, help="how many children (default 25)")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    options = parser.parse_args()
    if not 1 <= options.count <= 900:
        parser.error("--count: 1 to 900")
    if os.geteuid() != 0:
        parser.error("the demo makes network interfaces and VMs: run it as root")
    enter_own_namespace()
    load1 = os.getloadavg()[0]
    work = Path(tempfile.mkdtemp(prefix="ramet-demo-"))
    try:
        with daemon(work) as (client, _):
            return show(client, work, options.count, as_json=options.json, load1=load1)
    except RametError as error:
        say(f"demo failed: {error}")
        return 1
    finally:
        shutil.rmtree(work, ignore_errors=True)


def enter_own_namespace() -> None:
    """Start this program again in a network namespace of its own, with loopback up."""
    if OWN_NAMESPACE not in os.environ:
        environment = dict(os.environ, **{OWN_NAMESPACE: "1"})
        os.execvpe("unshare", ["unshare", "--net", sys.executable, *sys.argv], environment)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


@contextlib.contextmanager
def daemon(
    work: Path, program: Sequence[str] = (sys.executable, "-m", "ramet.cli")
) -> Iterator[tuple[Client, int]]:
    """Run a daemon on a data folder in `work`; at the end delete its instances and stop it.

    Yields its client and its pid.
    """
    socket = work / "api.sock"
    log = work / "daemon.log"
    command = [*program, "serve"]
    command += ["--data-dir", str(work / "data"), "--socket", str(socket)]
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=sink, stderr=sink, start_new_session=True)
    client = Client(Endpoint(socket_path=str(socket)))
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(client):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the daemon did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)
        try:
            yield client, process.pid
        finally:
            if process.poll() is None:
                delete_all(client)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def answers(client: Client) -> bool:
    try:
        client.health()
    except RametError:
        return False
    return True


def delete_all(client: Client) -> None:
    for instance in client.list():
        client.delete(instance.id)


def show(client: Client, work: Path, count: int, *, as_json: bool, load1: float) -> int:
    """Do the main job and print what happened; returns the exit code."""
    accelerator = find_accelerator()
    say(f"1. make an image: busybox and a small warm service       ({accelerator}, {os.cpu_count()} cores)")
    make_image(work / "image")
    image = client.import_image(str(work / "image"), "demo:1")
    say(f"   imported {image.name} as {image.digest[:19]}...")

    say("2. run it")
    began = time.monotonic()
    client.create(CreateInstance(name="source", image="demo:1", size="256MB", overlay_size="1GB", vcpus=1))
    source = client.get("source")
    if source.state != "Running":
        say(f"   the source is {source.state}: {source.state_error}")
        return 1
    boot_s = time.monotonic() - began
    say(f"   running at {address(source)} after {boot_s:.2f} s; now it keeps a token in memory and on disk")
    wait_listening(address(source))
    token = secrets.token_hex(8)
    ask(address(source), "POST", "/token", token)
    before = json.loads(ask(address(source), "GET", "/state"))

    say(f"3. fork the running VM into {count}")
    with SourceWatch(address(source)) as watch, Progress(client, count):
        began = time.monotonic()
        result = client.fork_many("source", count, "child")
        wall_s = time.monotonic() - began
    children = [fork.instance for fork in result.forks if fork.instance is not None]
    for fork in result.forks:
        if fork.error is not None:
            say(f"   {fork.name}: {fork.error.message}")

    say("4. check every child")
    states = [json.loads(ask(address(child), "GET", "/state")) for child in children]
    after = json.loads(ask(address(source), "GET", "/state"))
    problems = check(children, states, [before, after], token)
    for problem in problems[:10]:
        say(f"   WRONG: {problem}")
    if not problems:
        say(f"   {len(states)} have the source's memory and disk; each has its own address, name, randomness")

    summary = summarise(result.forks, wall_s)
    pause_s = max(f.timings_ms["source_pause"] for f in result.forks if f.timings_ms and f.instance) / 1000
    print_table(boot_s, pause_s, summary, watch.gap_s)
    if as_json:
        report = {
            "boot_s": round(boot_s, 3),
            "source_pause_s": round(pause_s, 4),
            "source_gap_s": round(watch.gap_s, 3),
            "forks": summary,
            "cores": os.cpu_count(),
            "load1": round(load1, 2),
            "accelerator": accelerator,
        }
        say(json.dumps(report))
    return 0 if not problems and len(children) == count else 1


def make_image(folder: Path) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        raise SystemExit("the demo's image needs busybox: apt-get install busybox-static")
    files, symlinks = busybox_files(Path(busybox))
    files["bin/warm-service"] = (0o755, build_example("ramet-guest", "warm_service").read_bytes())
    files["etc/machine-id"] = (0o444, b"")
    make_oci_layout(folder, "demo:1", files, symlinks, {"Cmd": ["/bin/warm-service"], "Env": ["PATH=/bin"]})


def address(instance: Instance) -> str:
    ip = instance.network and instance.network.ip
    if not ip:
        raise SystemExit(f"{instance.name} has no address")
    return ip


def wait_listening(ip: str) -> None:
    """Return when the service answers: an instance is Running when its workload has been started."""
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while True:
        try:
            ask(ip, "GET", "/ping")
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(PING_INTERVAL_S)
        else:
            return


def ask(ip: str, method: str, path: str, body: str | None = None) -> str:
    connection = http.client.HTTPConnection(ip, SERVICE_PORT, timeout=ANSWER_TIMEOUT_S)
    try:
        connection.request(method, path, body)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def check(
    children: list[Instance], states: list[dict[str, Any]], source: list[dict[str, Any]], token: str
) -> list[str]:
    """Return what is wrong: a child must have its source's state, and be nobody but itself."""
    problems = []
    for child, state in zip(children, states, strict=True):
        if state["memory"] != token or state["disk"] != token:
            found = f"memory {state['memory']!r} and disk {state['disk']!r}"
            problems.append(f"{child.name} has {found}, not {token!r}")
        if state["hostname"] != child.name or state["ip"] != address(child):
            problems.append(f"{child.name} says it is {state['hostname']} at {state['ip']}")
        if child.network and state["mac"] != child.network.mac:
            problems.append(f"{child.name} has MAC {state['mac']}, not {child.network.mac}")
    for name in FIELDS_OF_ITS_OWN:
        values = [state[name] for state in states] + [source[0][name]]
        if len(set(values)) != len(values):
            problems.append(f"several have the same {name}")
    if any(
        source[0][name] != source[1][name]
        for name in ("memory", "disk", "hostname", "ip", "mac", "machine_id")
    ):
        problems.append("the source has changed")
    return problems


class SourceWatch:
    """Asks the source all the time; `gap_s` is the longest time between two answers."""

    def __init__(self, ip: str) -> None:
        self._ip, self._ended, self.gap_s = ip, threading.Event(), 0.0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "SourceWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        ask(self._ip, "GET", "/ping")
        last = time.monotonic()
        while not self._ended.wait(PING_INTERVAL_S):
            ask(self._ip, "GET", "/ping")
            now = time.monotonic()
            self.gap_s, last = max(self.gap_s, now - last), now


class Progress:
    """Prints how many children run already."""

    def __init__(self, client: Client, count: int) -> None:
        self._client, self._count, self._ended = client, count, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(PROGRESS_INTERVAL_S):
            running = sum(i.state == "Running" and i.name.startswith("child-") for i in self._client.list())
            say(f"   {running:3} of {self._count} are themselves")


def summarise(forks: tuple[ForkResult, ...], wall_s: float) -> dict[str, float]:
    """Return the figures of the burst, in seconds; a fork's clock ends at its guest's acknowledgement."""
    times = sorted(f.timings_ms["total"] / 1000 for f in forks if f.instance is not None and f.timings_ms)
    summary: dict[str, float] = {"count": len(forks), "succeeded": len(times), "wall_s": round(wall_s, 3)}
    if times:
        summary["mean_s"] = round(statistics.fmean(times), 3)
        for name, share in (("p50_s", 0.5), ("p95_s", 0.95), ("max_s", 1.0)):
            summary[name] = round(times[math.ceil(share * len(times)) - 1], 3)
    return summary


def print_table(boot_s: float, pause_s: float, summary: dict[str, float], gap_s: float) -> None:
    figures = ("mean_s", "p50_s", "p95_s", "max_s")
    rows = [
        ("boot", f"{boot_s:.2f} s"),
        ("source pause", f"{pause_s * 1000:.1f} ms"),
        ("source's longest gap", f"{gap_s * 1000:.0f} ms"),
        *((f"fork {name[:-2]}", f"{summary[name]:.2f} s") for name in figures if name in summary),
        ("all forks, wall", f"{summary['wall_s']:.2f} s"),
        ("succeeded", f"{summary['succeeded']}/{summary['count']}"),
    ]
    say("")
    for name, value in rows:
        say(f"   {name:22} {value:>10}")
    say("")


if __name__ == "__main__":
    sys.exit(main())
