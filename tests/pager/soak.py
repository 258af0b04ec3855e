"""`./run soak pager [SECONDS]`: sessions that come and go, with every byte looked at.

25 VMMs at a time read, write and give back pages at random, several threads each, over bases that are raw or
packed, with overlay pages and working sets, and a cache far smaller than the bases. They end by themselves,
are killed, closed or completed, while strangers talk nonsense to sockets of their own. Now and then the pager
is drained under them, and another takes over.

Each VMM looks at every page before it ends. After each round nobody is left, and the pager must have neither
more descriptors nor more memory than after its first. The last line is a JSON summary; exit code 1: something
did not hold.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from native.build import build_example
from ramet.boot.locate import PAGER_PROGRAM, native_program
from ramet.core.errors import RametError
from ramet.pager import (
    BaseFormat,
    NoSuchSession,
    PagerClient,
    PagerDraining,
    PagerSupervisor,
    PagerUnreachable,
    SessionPhase,
    WorkingSetUse,
    pack,
)

SECONDS_DEFAULT: Final = 600
ROUND_S_MAX: Final = 20.0
SESSION_COUNT: Final = 25
THREADS: Final = 2
PAGE_BYTES: Final = 4096
SIZE_BYTES: Final = 12 << 20
BASE_COUNT: Final = 4
CACHE_BYTES: Final = 2 << 20
GROWTH_BYTES_MAX: Final = 4 << 20
"""Of private memory from one round to a later one: the cache and the allocator's own."""
WAIT_TIMEOUT_S: Final = 60.0
HOSTILE: Final = "hostile"
NONSENSE: Final = (b"", b"{", b"GET / HTTP/1.1\r\n\r\n", b"[]", b"[" * 2000, b" " * 70_000, b'[{"size": -1}]')


class Violation(Exception):
    """Something that must hold does not."""


class Soak:
    """Rounds of sessions of one pager after the other."""

    def __init__(self, folder: Path, seconds: float, seed: int, program: Path | None) -> None:
        self._folder, self._seconds = folder, seconds
        self._program = program or native_program(PAGER_PROGRAM)
        # One that was built with a sanitizer keeps what is freed, to see who uses it.
        self._is_memory_compared = program is None
        self._random = random.Random(seed)
        self._vmm = build_example("ramet-pager", "vmm")
        self._number = 0
        self._is_draining = False
        self._tally: Counter[str] = Counter()
        self._bases: list[tuple[Path, Path, BaseFormat]] = []
        for number in range(BASE_COUNT):
            model, packed = folder / f"model-{number}", folder / f"packed-{number}"
            self._write_model(model)
            if number % 2:
                pack(model, packed, level=1)
                self._bases.append((packed, model, BaseFormat.PACKED))
            else:
                self._bases.append((model, model, BaseFormat.RAW))

    async def run(self) -> dict[str, Any]:
        """Work for the time, and return the summary."""
        until = time.monotonic() + self._seconds
        growth_bytes, pagers = 0, 0
        while time.monotonic() < until:
            supervisor = PagerSupervisor(self._folder / "pagers", self._program, cache_bytes_max=CACHE_BYTES)
            client = await supervisor.start()
            pagers += 1
            try:
                growth_bytes = max(growth_bytes, await self._use(client, supervisor.pid, until))
                async with asyncio.timeout(WAIT_TIMEOUT_S):
                    await supervisor.wait_exited()
            except BaseException:
                with suppress(ProcessLookupError):
                    os.kill(supervisor.pid, signal.SIGKILL)
                raise
            finally:
                supervisor.close()
            self._read_log()
        return {**dict(sorted(self._tally.items())), "pagers": pagers, "growth_bytes_max": growth_bytes}

    async def _use(self, client: PagerClient, pid: int, until: float) -> int:
        """Work with one pager for some rounds, drain it in the last; return how much memory it grew by."""
        self._is_draining = False
        first: tuple[int, int] | None = None
        growth_bytes = 0
        round_s = min(ROUND_S_MAX, self._seconds / 6)
        for number in range(3):
            round_until = time.monotonic() + round_s
            is_last = number == 2 or round_until >= until
            async with asyncio.TaskGroup() as group:
                for _ in range(SESSION_COUNT):
                    group.create_task(self._live(client, round_until))
                for _ in range(2):
                    group.create_task(self._be_hostile(client, round_until))
                if is_last:
                    await asyncio.sleep(round_s / 2)
                    self._is_draining = True
                    await client.drain()
            self._tally["rounds"] += 1
            if is_last:
                break
            found = await self._look(client, pid)
            if first is None:
                first = found
            growth_bytes = max(growth_bytes, found[1] - first[1])
            if found[0] > first[0] or (self._is_memory_compared and growth_bytes > GROWTH_BYTES_MAX):
                raise Violation(f"descriptors and bytes of memory grew from {first} to {found}")
        return growth_bytes

    async def _look(self, client: PagerClient, pid: int) -> tuple[int, int]:
        """Wait until nobody is left; return the pager's descriptors and private memory in bytes."""
        async with asyncio.timeout(WAIT_TIMEOUT_S):
            while (statistics := await client.statistics()).sessions:
                pass
        if statistics.cache.size_bytes > CACHE_BYTES:
            raise Violation(f"the cache holds {statistics.cache.size_bytes} bytes")
        self._tally["evictions"] += statistics.cache.eviction_count
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        fields = dict(line.split(":") for line in rollup.splitlines()[1:])
        return len(os.listdir(f"/proc/{pid}/fd")), int(fields["Private_Dirty"].split()[0]) << 10

    def _read_log(self) -> None:
        """Look at how every session of the pager that has just ended came to its end."""
        (log,) = (self._folder / "pagers").glob("*/log")
        for line in log.read_text().splitlines():
            event = json.loads(line)
            if event["event"] == "session_ended":
                self._tally[f"ended_{event['how']}"] += 1
                if event["how"] == "failed" and not event["id"].startswith(HOSTILE):
                    raise Violation(f"session {event['id']} failed: {event['reason']}")
            elif event["event"].endswith("_failed"):
                raise Violation(f"the pager says {line}")
        log.unlink()

    async def _live(self, client: PagerClient, until: float) -> None:
        """Be one VMM after the other."""
        while True:
            name = self._new_name("s")
            base, model, base_format = self._random.choice(self._bases)
            overlays = self._write_overlays(name)
            try:
                path = await client.open_session(
                    name,
                    base,
                    SIZE_BYTES,
                    base_format=base_format,
                    overlays=overlays,
                    working_set=self._random.choice(list(WorkingSetUse)),
                )
            except (PagerDraining, PagerUnreachable) as error:
                self._check_draining(error)
                for page in overlays.values():
                    page.unlink()
                return
            lines = self._folder / f"{name}-overlays"
            lines.write_text("".join(f"{offset} {page}\n" for offset, page in overlays.items()))
            arguments = [SIZE_BYTES, self._number, THREADS, path, model, lines]
            vmm = await _Vmm.start(self._vmm, "work", *map(str, arguments))
            try:
                await self._see_through(client, vmm, name, until)
            finally:
                await vmm.end()
                for file in (lines, *overlays.values()):
                    file.unlink()
            if time.monotonic() >= until:
                return

    async def _see_through(self, client: PagerClient, vmm: "_Vmm", name: str, until: float) -> None:
        """Have a VMM work for a while, and come to one of the ends there are."""
        await vmm.tell()
        if await vmm.line() != b"ready\n":
            raise Violation(f"{name} did not begin")
        while all(
            session.id != name or session.phase is not SessionPhase.SERVING
            for session in (await client.statistics()).sessions
        ):
            pass
        await asyncio.sleep(self._random.uniform(0.1, 1.5))
        if self._random.random() < 0.5:
            await client.ready_session(name)
        await asyncio.sleep(self._random.uniform(0.1, 1.5))
        ends = ["look"] * 4 + ["kill", "close", "complete"] * 2 + ["complete and kill"]
        end = "look" if time.monotonic() >= until else self._random.choice(ends)
        self._tally[end] += 1
        if end == "kill":
            vmm.process.kill()
        elif end == "close":
            if not await client.close_session(name) or await vmm.process.wait() != -signal.SIGKILL:
                raise Violation(f"the VMM of {name} outlived its session")
        elif end == "complete and kill":
            completion = asyncio.ensure_future(client.complete_session(name))
            await asyncio.sleep(0)
            vmm.process.kill()
            await asyncio.gather(completion, return_exceptions=True)
            error = completion.exception()
            if isinstance(error, PagerUnreachable):
                self._check_draining(error)  # It was the last session, and ended before this was asked.
            elif not isinstance(error, NoSuchSession | None):
                raise Violation(f"completing {name}: {error}") from error
        else:
            if end == "complete":
                await client.complete_session(name)
            await vmm.tell()
            found = json.loads(await vmm.line())
            self._tally["operations"] += found["operations"]
            self._tally["bytes_looked_at"] += SIZE_BYTES
            if found["wrong_pages"]:
                raise Violation(f"{name} has wrong pages: {found['wrong_pages'][:20]}")

    async def _be_hostile(self, client: PagerClient, until: float) -> None:
        """Talk nonsense to one session after the other; none of them may harm another."""
        while time.monotonic() < until:
            try:
                path = await client.open_session(self._new_name(HOSTILE), self._bases[0][0], SIZE_BYTES)
            except (PagerDraining, PagerUnreachable) as error:
                self._check_draining(error)
                return
            reader, writer = await asyncio.open_unix_connection(str(path))
            try:
                writer.write(self._random.choice(NONSENSE))
                writer.write_eof()
                if await reader.read():
                    raise Violation("the pager answered nonsense")
            except ConnectionError:
                pass  # It hung up before we had said all.
            finally:
                writer.close()
            self._tally["hostile"] += 1
            await asyncio.sleep(self._random.uniform(0.0, 0.2))

    def _check_draining(self, error: Exception) -> None:
        """See that a session was refused because the pager is being drained, or has been."""
        if not self._is_draining:
            raise Violation(f"no session was opened: {error}") from error
        self._tally["refused"] += 1

    def _new_name(self, kind: str) -> str:
        self._number += 1
        return f"{kind}-{self._number}"

    def _write_overlays(self, name: str) -> dict[int, Path]:
        pages = self._random.sample(range(SIZE_BYTES // PAGE_BYTES), self._random.choice([0, 0, 1, 16]))
        overlays = {}
        for page in pages:
            path = self._folder / f"{name}-page-{page}"
            path.write_bytes(self._random.randbytes(PAGE_BYTES))
            overlays[page * PAGE_BYTES] = path
        return overlays

    def _write_model(self, path: Path) -> None:
        """Write memory in pieces: noise, text, and holes."""
        with path.open("wb") as file:
            for start in range(0, SIZE_BYTES, 8 * PAGE_BYTES):
                kind = self._random.randrange(4)
                if kind < 2:
                    file.seek(start)
                    piece = self._random.randbytes(8 * PAGE_BYTES if kind else 64)
                    file.write(piece * (8 * PAGE_BYTES // len(piece)))
            file.truncate(SIZE_BYTES)


class _Vmm:
    """A running native/pager/examples/vmm.rs."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, program: Path, *arguments: str) -> "_Vmm":
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(program, *arguments, stdin=pipe, stdout=pipe))

    async def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        await self.process.stdin.drain()

    async def line(self) -> bytes:
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_TIMEOUT_S):
            return await self.process.stdout.readline()

    async def end(self) -> None:
        """Let it end; one that was killed has."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        async with asyncio.timeout(WAIT_TIMEOUT_S):
            await self.process.wait()


async def soak(seconds: float, seed: int, program: Path | None = None) -> dict[str, Any]:
    """Return the summary of a soak in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="pager-soak-", dir="/dev/shm"))
    began = time.monotonic()
    summary: dict[str, Any] = {"seed": seed, "violations": []}
    try:
        summary |= await Soak(folder, seconds, seed, program).run()
    except* (Violation, RametError, TimeoutError, EOFError, OSError, ValueError) as group:
        traceback.print_exception(group)
        summary["violations"] = [repr(error) for error in group.exceptions]
    finally:
        shutil.rmtree(folder)
    return {"seconds": round(time.monotonic() - began, 1), **summary}


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run soak pager", description=__doc__.partition("\n")[0])
    parser.add_argument("seconds", nargs="?", type=float, default=SECONDS_DEFAULT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--program", type=Path, help="a pager that was built otherwise, such as with a sanitizer"
    )
    asked = parser.parse_args()
    summary = asyncio.run(soak(asked.seconds, asked.seed, asked.program))
    print(json.dumps(summary))
    return 1 if summary["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
