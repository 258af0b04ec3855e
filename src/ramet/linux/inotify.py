"""Waiting for a file to appear, or to be written: inotify(7)."""

import asyncio
import ctypes
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

_IN_MODIFY: Final = 0x2
_IN_CREATE: Final = 0x100
_IN_MOVED_TO: Final = 0x80
_EVENT_BYTES_MAX: Final = 4096
_libc: Final = ctypes.CDLL(None, use_errno=True)


class NewFiles:
    """Tells whenever something appeared in a folder, or in a file."""

    def __init__(self) -> None:
        self._seen = asyncio.Event()

    def tell(self) -> None:
        """End the present or the next wait."""
        self._seen.set()

    async def wait(self) -> None:
        """Return when something appeared since the last wait, or since the watch began."""
        await self._seen.wait()
        self._seen.clear()


def watch_new_files(folder: Path) -> AbstractContextManager[NewFiles]:
    """Inside, be told of each file that appears in `folder`.

    Raises:
        OSError: the folder cannot be watched: there is none, or too many are (inotify(7), max_user_watches).
    """
    return _watch(folder, _IN_CREATE | _IN_MOVED_TO)


def watch_writes(file: Path) -> AbstractContextManager[NewFiles]:
    """Inside, be told whenever `file` was written. Errors are as of `watch_new_files`."""
    return _watch(file, _IN_MODIFY)


@contextmanager
def _watch(path: Path, events: int) -> Iterator[NewFiles]:
    fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    loop, new = asyncio.get_running_loop(), NewFiles()

    def see() -> None:
        os.read(fd, _EVENT_BYTES_MAX)
        new.tell()

    try:
        if _libc.inotify_add_watch(fd, os.fsencode(path), events) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
        loop.add_reader(fd, see)
        try:
            yield new
        finally:
            loop.remove_reader(fd)
    finally:
        os.close(fd)
