"""A tree of this host, read as a POSIX pax tar stream.

Nothing is held but one folder per level, and the names of files that have several links.
"""

import os
import stat
from collections.abc import Iterator
from typing import Final

from ramet.client.host_files import HostPathUnsupported, about, printable
from ramet.wire_api.tar import END_OF_ARCHIVE, Entry, Kind, header, padding

CHUNK_BYTES: Final = 256 << 10
LINK_COUNT_MAX: Final = 100_000
"""Of how many files with several links the first name is remembered; later ones are copied for each name."""


def pack(path: str, name: str) -> Iterator[bytes]:
    """Yield an archive of `path` and all below it, in chunks of about `CHUNK_BYTES`.

    Symbolic links are archived as links; `path` itself is followed if it ends with a slash. Sockets are left
    out. A file that changes meanwhile has the size it had, cut or filled up with zeros.

    Args:
        name: of `path` in the archive; "." for one that holds only what is in it.

    Raises:
        HostPathNotFound, HostPermissionDenied, HostPathUnsupported, HostFileFailed: while reading.
    """
    held = bytearray()
    for piece in _Tree().pieces(path, name):
        held += piece
        if len(held) >= CHUNK_BYTES:
            yield bytes(held)
            held.clear()
    yield bytes(held) + END_OF_ARCHIVE


class _Tree:
    def __init__(self) -> None:
        self._links: dict[tuple[int, int], str] = {}

    def pieces(self, path: str, name: str) -> Iterator[bytes]:
        yield from self._add(path, name)
        levels = [(path, name, self._list(path))]
        while levels:
            folder, folder_name, left = levels[-1]
            if not left:
                levels.pop()
                continue
            child = left.pop()
            child_path, child_name = os.path.join(folder, child), f"{folder_name}/{child}"
            yield from self._add(child_path, child_name)
            levels.append((child_path, child_name, self._list(child_path)))

    def _list(self, path: str) -> list[str]:
        """Return what is in a folder, last first; nothing for what is none."""
        with about(path):
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                return []
            return sorted(os.listdir(path), reverse=True)

    def _add(self, path: str, name: str) -> Iterator[bytes]:
        with about(path):
            found = os.lstat(path)
        first_name = self._first_name(found, name)
        kind = _kind(found.st_mode) if first_name is None else Kind.HARDLINK
        if kind is None:
            return
        if kind is Kind.OTHER:
            raise HostPathUnsupported(f"{printable(path)} is a device, and devices are not copied")
        link = first_name or ""
        if kind is Kind.SYMLINK:
            with about(path):
                link = os.readlink(path)
        entry = Entry(
            name=f"{name}/" if kind is Kind.DIRECTORY else name,
            kind=kind,
            mode=stat.S_IMODE(found.st_mode),
            size_bytes=found.st_size if kind is Kind.FILE else 0,
            mtime_ns=found.st_mtime_ns,
            uid=found.st_uid,
            gid=found.st_gid,
            link=link,
        )
        if kind is Kind.FILE:
            yield from _file(path, entry)
        else:
            yield header(entry)

    def _first_name(self, found: os.stat_result, name: str) -> str | None:
        """Return the name under which this file is in the archive already."""
        if found.st_nlink < 2 or stat.S_ISDIR(found.st_mode):
            return None
        key = (found.st_dev, found.st_ino)
        first_name = self._links.get(key)
        if first_name is None and len(self._links) < LINK_COUNT_MAX:
            self._links[key] = name
        return first_name


def _file(path: str, entry: Entry) -> Iterator[bytes]:
    with about(path):
        # Not a FIFO that took its place: opening that would wait for ever.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield header(entry)
        left_bytes = entry.size_bytes
        while left_bytes:
            wanted_bytes = min(left_bytes, CHUNK_BYTES)
            with about(path):
                data = os.read(fd, wanted_bytes) or bytes(wanted_bytes)
            yield data
            left_bytes -= len(data)
        yield padding(entry.size_bytes)
    finally:
        os.close(fd)


def _kind(mode: int) -> Kind | None:
    """Return what a file is in an archive; None for a socket, which cannot be in one."""
    if stat.S_ISSOCK(mode):
        return None
    kinds = {
        stat.S_IFREG: Kind.FILE,
        stat.S_IFDIR: Kind.DIRECTORY,
        stat.S_IFLNK: Kind.SYMLINK,
        stat.S_IFIFO: Kind.FIFO,
    }
    return kinds.get(stat.S_IFMT(mode), Kind.OTHER)
