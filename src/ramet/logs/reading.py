"""Reading logs while they are written and rotated.

| source | files | written by |
|---|---|---|
| app | output.log | the workload, over virtio |
| vmm | console.log, vmm.log | the guest's kernel; the VMM itself |
| hypeman | operations.log | us: what was done to the instance |

A log is one stream of bytes over its files, oldest first. A follower remembers the newest rotated file it
knows; when there are newer ones, it first finishes what has moved there.
"""

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

from ramet.linux.plain_file import open_plain
from ramet.logs.rotation import held, place_after_rotation, rotated_files

SOURCES: Final = {
    "app": ("output.log",),
    "vmm": ("console.log", "vmm.log"),
    "hypeman": ("operations.log",),
}
FOLLOW_INTERVAL_S: Final = 0.2
TAIL_BYTES_MAX: Final = 16 << 20
"""However many lines are asked for, no more is looked back."""
LINE_BYTES_MAX: Final = 1 << 20
"""A longer line comes in pieces."""
FELL_BEHIND: Final = "[ramet: lines were rotated away before they could be followed]"

_READ_BYTES: Final = 256 << 10
_Identity = tuple[int, int]


async def read_logs(
    folder: Path, source: str, tail: int, *, follow: bool, is_alive: Callable[[], bool]
) -> AsyncIterator[str]:
    """Yield the last `tail` lines of each log of `source` and, with `follow`, those to come.

    Following ends when `is_alive` says that nobody writes any more and all is read.
    """
    logs = [Follower(folder / name) for name in SOURCES[source]]
    for log in logs:
        for line in await to_thread.run_sync(log.read_tail, tail):
            yield line
    while follow:
        alive, found = is_alive(), False
        for log in logs:
            for line in await to_thread.run_sync(log.read_more):
                found = True
                yield line
            found = found or log.has_more
        if not found and not alive:
            break
        if not found:
            await anyio.sleep(FOLLOW_INTERVAL_S)
    for log in logs:
        if log.rest:
            yield _text(log.rest)


def read_end(log: Path, byte_count: int) -> bytes:
    """Return the last bytes of a log, over its files; empty if there is none."""
    try:
        with held(log.parent, alone=False):
            data = b""
            for path in (log, *rotated_files(log)):
                if len(data) < byte_count and path.exists():
                    data = _last_bytes(path, byte_count - len(data)) + data
            return data
    except FileNotFoundError:
        return b""


class Follower:
    """One reader's place in one log. `rest` is the beginning of a line whose end has not come."""

    def __init__(self, log: Path) -> None:
        self.rest = b""
        self.has_more = False
        self._log, self._position = log, 0
        self._known: _Identity | None = None  # The newest rotated file when we last looked.
        self._moved_to: _Identity | None = None  # The rotated file that `_position` is of; None: the log.

    def read_tail(self, count: int) -> list[str]:
        """Return the last `count` lines, and stand behind them."""
        try:
            with held(self._log.parent, alone=False):
                rotated = rotated_files(self._log)
                self._known = _identity(rotated[0]) if rotated else None
                self._position = self._log.stat().st_size if self._log.exists() else 0
                data = b""
                for path in (self._log, *rotated):
                    if path.exists():
                        data = _prepend_until(path, data, count)
        except FileNotFoundError:
            return []
        *lines, self.rest = data.split(b"\n")
        if len(self.rest) > LINE_BYTES_MAX:
            lines, self.rest = [*lines, self.rest], b""
        wanted = count - 1 if self.rest else count
        return [_text(line) for line in lines[-wanted:]] if wanted > 0 else []

    def read_more(self) -> list[str]:
        """Return the next whole lines, some of those there are; empty if nothing has come."""
        try:
            with held(self._log.parent, alone=False):
                data, fell_behind = self._next_bytes()
        except FileNotFoundError:
            data, fell_behind = b"", False
        self.has_more = bool(data)
        *lines, self.rest = (self.rest + data).split(b"\n")
        if len(self.rest) > LINE_BYTES_MAX:
            lines, self.rest = [*lines, self.rest], b""
        return ([FELL_BEHIND] if fell_behind else []) + [_text(line) for line in lines]

    def _next_bytes(self) -> tuple[bytes, bool]:
        rotated = rotated_files(self._log)
        identities = [_identity(path) for path in rotated]
        fell_behind = any(one and one not in identities for one in (self._known, self._moved_to))
        if fell_behind:
            self._moved_to = None
        newer = identities.index(self._known) if self._known in identities else len(identities)
        while newer > 0:
            path, identity = rotated[newer - 1], identities[newer - 1]
            if fell_behind and self._moved_to != identity:
                self._position = 0
            elif self._moved_to != identity:
                self._position = place_after_rotation(path, self._position)
            self._moved_to = identity
            data = self._read(path)
            if data:
                # What we know is gone for good: from now on we know none, and count from the oldest there is.
                self._known = identities[newer] if newer < len(identities) else None
                return data, fell_behind
            self._known, self._moved_to, self._position = identity, None, 0
            newer -= 1
        if not self._log.exists():
            return b"", fell_behind
        if self._log.stat().st_size < self._position:
            self._position = 0  # Somebody else cut it.
        return self._read(self._log), fell_behind

    def _read(self, path: Path) -> bytes:
        with open(open_plain(path, os.O_RDONLY), "rb") as file:
            file.seek(self._position)
            data = file.read(_READ_BYTES)
        self._position += len(data)
        return data


def _prepend_until(path: Path, data: bytes, line_count: int) -> bytes:
    with open(open_plain(path, os.O_RDONLY), "rb") as file:
        position = os.fstat(file.fileno()).st_size
        while position > 0 and data.count(b"\n") <= line_count and len(data) < TAIL_BYTES_MAX:
            step = min(_READ_BYTES, position)
            position -= step
            file.seek(position)
            data = file.read(step) + data
    return data


def _last_bytes(path: Path, byte_count: int) -> bytes:
    with open(open_plain(path, os.O_RDONLY), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - byte_count))
        return file.read(byte_count)


def _identity(path: Path) -> _Identity:
    found = path.stat()  # An inode's number alone is soon another file's.
    return found.st_ino, found.st_mtime_ns


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\r").decode(errors="replace")
