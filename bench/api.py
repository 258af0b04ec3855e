"""How the API answers when there are 10,000 instances: ./run bench api [--json]

A daemon on fake VMMs serves them over TCP, with tokens, from a process of its own; one client asks it, one
request after another, by name, for whole lists, for filtered ones and for pieces. While that is done, the
server measures how long each turn of its event loop took, which is what a handler holds up all others for.
"""

import argparse
import asyncio
import http.client
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import time
from asyncio import events
from collections.abc import Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TextIO

import anyio
from anyio import to_thread

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from examples.demo import enter_own_namespace
from examples.make_image import make_oci_layout
from ramet.api import HostFacts, HttpServer, RuntimeFacts, TokenAuth, create_app
from ramet.cli.figures import percentile
from ramet.cli.output import print_table
from ramet.core.ids import InstanceId, mint_id
from ramet.core.spec import InstanceIdentity, InstanceRecord, State
from ramet.daemon.config import Settings
from ramet.daemon.garbage import short_searches
from ramet.daemon.wiring import make_keepers
from ramet.images import Catalog, ImageLimits
from tests.api.stand_in import SECRET, token
from tests.compat.server import parts_of
from tests.effects.world import Daemon, World, new_folder, performer_of

COUNT: Final = 10_000
TEAM_COUNT: Final = 100
ROUNDS: Final = 2_000
LIST_ROUNDS: Final = 9
PIECE: Final = 100
IMAGE: Final = "demo:1"

# The server


class Turns:
    """How long the turns of this process's event loop take, from the moment that this is made."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        run = events.Handle._run

        def timed(handle: events.Handle) -> None:
            began = time.perf_counter()
            run(handle)
            self.longest_s = max(self.longest_s, time.perf_counter() - began)

        setattr(events.Handle, "_run", timed)  # noqa: B010

    def take_longest_s(self) -> float:
        """Return the longest since this was asked last."""
        longest_s, self.longest_s = self.longest_s, 0.0
        return longest_s


async def serve(count: int) -> None:
    """Serve `count` instances; tell the port, then for each line of stdin the longest turn since the last."""
    told = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # Where the log goes.
    images = new_folder()
    make_oci_layout(images / "oci", IMAGE, {"etc/name": (0o644, b"demo")}, {}, {"Cmd": ["sleep"]})
    catalog = Catalog(images / "images", ImageLimits())
    await catalog.open()
    await catalog.import_path(images / "oci", name=IMAGE)
    world = World(new_folder(), images / "images")
    try:
        async with world.daemon() as daemon:
            for number in range(count):
                _add(daemon, number)
            await _serve(daemon, told)
    finally:
        await world.aclose()
        shutil.rmtree(images, ignore_errors=True)


def _add(daemon: Daemon, number: int) -> None:
    """Have one more instance, stopped, as a start of the daemon finds it; one in a hundred is Unknown."""
    spec = replace(daemon.spec, tags={"team": f"team-{number % TEAM_COUNT}", "number": str(number)})
    identity = InstanceIdentity(InstanceId(mint_id()), name_of(number), None, "0" * 32, time.time(), None)
    state = State.UNKNOWN if number % TEAM_COUNT == 0 else State.STOPPED
    daemon.fleet._add(InstanceRecord(spec, identity, state))


async def _serve(daemon: Daemon, told: TextIO) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    performer, site = performer_of(daemon.fleet), daemon.site
    keepers = make_keepers(Settings(), daemon.fleet, performer, daemon.snapshots, site)
    facts = HostFacts("0.1.0", "fake", (RuntimeFacts("fake", True),))
    app = create_app(parts_of(daemon, keepers, facts), auth=TokenAuth(SECRET))
    server, turns = HttpServer(app, listener), Turns()
    async with short_searches(), anyio.create_task_group() as group:
        group.start_soon(keepers.run, lambda: [view.record for view in daemon.fleet.list()])
        group.start_soon(server.serve)
        print(listener.getsockname()[1], file=told, flush=True)
        while await to_thread.run_sync(sys.stdin.readline):
            print(turns.take_longest_s(), file=told, flush=True)
        server.stop()
        group.cancel_scope.cancel()


# The client


class Asker:
    """A client of the server, which it starts; ask it inside."""

    def __init__(self, count: int) -> None:
        self._argv = [sys.executable, __file__, "--serve", "--count", str(count)]

    def __enter__(self) -> "Asker":
        self._process = subprocess.Popen(
            self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._connection = http.client.HTTPConnection("127.0.0.1", int(self._read()))
        self._headers = {"Authorization": f"Bearer {token()}"}
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        self._process.communicate()

    def get(self, path: str) -> Any:
        self._connection.request("GET", path, headers=self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != HTTPStatus.OK:
            raise SystemExit(f"GET {path}: {answer.status} {content[:500]!r}")
        return content

    def take_longest_turn_s(self) -> float:
        """Return the longest turn of the server's loop since this was asked last."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the server ended")
        return line


@dataclass(frozen=True, slots=True)
class Answered:
    """What one kind of request took: milliseconds, and instances in the last answer (0: it was one)."""

    p50_ms: float
    p99_ms: float
    longest_turn_ms: float
    instances: int


def measure(asker: Asker, paths: Sequence[str]) -> Answered:
    """Ask for `paths`, one after another, the first of them once more before."""
    asker.get(paths[0])
    asker.take_longest_turn_s()
    took_ms, content = [], b""
    for path in paths:
        began = time.perf_counter()
        content = asker.get(path)
        took_ms.append((time.perf_counter() - began) * 1000)
    longest_ms = asker.take_longest_turn_s() * 1000
    found = json.loads(content)
    count = len(found) if isinstance(found, list) else 0
    return Answered(statistics.median(took_ms), percentile(took_ms, 0.99), longest_ms, count)


def name_of(number: int) -> str:
    return f"vm-{number}"


def main(count: int, rounds: int, *, as_json: bool) -> None:
    chosen = random.Random(1)
    kinds: dict[str, Sequence[str]] = {
        "get": [f"/instances/{name_of(chosen.randrange(count))}" for _ in range(rounds)],
        "list": ["/instances"] * LIST_ROUNDS,
        "state": ["/instances?state=Unknown"] * LIST_ROUNDS,
        "tag": [f"/instances?tags[team]=team-{n}" for n in range(LIST_ROUNDS)],
        "piece": [f"/instances?limit={PIECE}"] * LIST_ROUNDS,
        "missing": ["/instances?tags[team]=nobody"] * LIST_ROUNDS,
        "resources": ["/resources"] * LIST_ROUNDS,
    }
    with Asker(count) as asker:
        answered = {kind: measure(asker, paths) for kind, paths in kinds.items()}
    if not as_json:
        rows = [
            (kind, f"{a.instances:,}", f"{a.p50_ms:.2f}", f"{a.p99_ms:.2f}", f"{a.longest_turn_ms:.2f}")
            for kind, a in answered.items()
        ]
        print_table(("REQUEST", "INSTANCES", "P50 MS", "P99 MS", "LONGEST TURN MS"), rows)
    figures = {
        "instances": count,
        "get_p99_ms": round(answered["get"].p99_ms, 2),
        "list_p50_ms": round(answered["list"].p50_ms, 1),
        "longest_turn_ms": round(max(a.longest_turn_ms for a in answered.values()), 2),
        "cores": os.cpu_count(),
        "load1": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(figures))


def _parse() -> Any:
    parser = argparse.ArgumentParser(prog="./run bench api", description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=COUNT, help=f"how many instances (default {COUNT:,})")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"reads of one (default {ROUNDS:,})")
    parser.add_argument("--json", action="store_true", help="print the JSON object only")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("it makes network interfaces: run it as root")
    return options


if __name__ == "__main__":
    options = _parse()
    if options.serve:
        asyncio.run(serve(options.count))
    else:
        enter_own_namespace()
        main(options.count, options.rounds, as_json=options.json)
