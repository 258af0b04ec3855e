"""Bounding a file that another process appends to.

The VMM opens its logs once, for appending, and cannot be asked to open them again. So a log that is full is
copied to `NAME.1`, after what was there has moved to `NAME.2`, and cut to nothing in place. Bytes appended
between the last look at its end and the cut, some microseconds apart, go unseen; what is dropped knowingly,
because the log outgrew its bound before we looked, is told by a line of our own.

Whoever rotates holds the instance's folder alone (flock), whoever reads holds it with other readers, so
nobody reads a log that is half moved; and whoever removes the folder holds it alone, too.
"""

import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ramet.linux.plain_file import create_plain, open_plain

LOG_FILES: Final = ("console.log", "output.log", "vmm.log", "metrics.json", "operations.log")

_DROPPED: Final = "[ramet: {} bytes of this log were dropped here]\n"
_DROPPED_LINE: Final = re.compile(rb"\[ramet: (\d+) bytes of this log were dropped here\]\n")
_LINE_BYTES_MAX: Final = 128


@dataclass(frozen=True, slots=True)
class LogBounds:
    """A log is rotated when it is longer than `file_bytes_max`; `rotated_count` older files are kept."""

    file_bytes_max: int = 50 << 20
    rotated_count: int = 1


@contextmanager
def held(folder: Path, *, alone: bool) -> Iterator[None]:
    """Hold the logs in `folder` still (`alone`: to move them). Waits for whoever holds them.

    Raises:
        FileNotFoundError: the folder is gone.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def rotated_files(log: Path) -> list[Path]:
    """Return the rotated files of `log`, newest first."""
    found: list[Path] = []
    while (path := _rotated(log, len(found) + 1)).exists():
        found.append(path)
    return found


def sweep(instances: Path, bounds: LogBounds) -> int:
    """Rotate every log under `instances` that is too long; return the size of the longest then left."""
    longest = 0
    for entry in os.scandir(instances):
        for name in LOG_FILES:
            log = Path(entry.path, name)
            try:
                facts = log.lstat()
                if not stat.S_ISREG(facts.st_mode):
                    continue  # A jailed VMM has led it elsewhere; other logs grow on.
                size = facts.st_size
                if size > bounds.file_bytes_max:
                    with held(log.parent, alone=True):
                        rotate(log, bounds)
                    size = log.stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                continue  # Its instance was deleted while we looked, or has not written any.
            longest = max(longest, size)
    return longest


def rotate(log: Path, bounds: LogBounds) -> None:
    """Move the content of `log` to its first rotated file; of more than its bound, the newest part.

    The folder is held by the caller.

    Raises:
        OSError: the disk is full, or the log is gone; what it held is still there.
    """
    part = log.with_name(f"{log.name}.part")
    with (
        open(open_plain(log, os.O_RDWR), "r+b") as source,
        open(create_plain(part), "wb", buffering=0) as target,
    ):
        skipped = max(0, os.fstat(source.fileno()).st_size - bounds.file_bytes_max)
        if skipped:
            target.write(_DROPPED.format(skipped).encode())
        end = _copy(source.fileno(), target.fileno(), skipped, skipped + bounds.file_bytes_max)
        for index, path in reversed(list(enumerate(rotated_files(log), 1))):
            if index >= bounds.rotated_count:
                path.unlink()
            else:
                path.rename(_rotated(log, index + 1))
        part.rename(_rotated(log, 1))
        end = _copy(source.fileno(), target.fileno(), end, skipped + 2 * bounds.file_bytes_max)
        unseen = os.fstat(source.fileno()).st_size - end
        os.ftruncate(source.fileno(), 0)
        if unseen > 0:
            target.write(b"\n" + _DROPPED.format(unseen).encode())


def place_after_rotation(rotated: Path, position: int) -> int:
    """Return where in a rotated file lies what was at `position` of the log it was made from."""
    with rotated.open("rb") as file:
        match = _DROPPED_LINE.match(file.read(_LINE_BYTES_MAX))
    if match is None:
        return position
    skipped = int(match[1])
    return 0 if position < skipped else position - skipped + match.end()


def _rotated(log: Path, index: int) -> Path:
    return log.with_name(f"{log.name}.{index}")


def _copy(source: int, target: int, begin: int, end: int) -> int:
    """Append the bytes between `begin` and `end`, or to the file's end, to `target`; return where it came."""
    while begin < end:
        count = os.sendfile(target, source, begin, end - begin)
        if count == 0:
            break
        begin += count
    return begin
