"""A tar stream, unpacked into one folder of this host and nowhere else.

The stream comes from a guest, which may mean ill. So every folder on the way to a name is opened from the one
before without following links, files and links are made under another name and moved to theirs when they are
whole, and devices are never made. Set-user-id and set-group-id bits count only where owners are kept: else
whoever unpacks would give them away.
"""

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from ramet.client.host_files import (
    ArchiveUnsafe,
    HostPathIsDirectory,
    HostPathNotDirectory,
    HostPermissionDenied,
    about,
    printable,
)
from ramet.wire_api.tar import Entry, EntryEnd, Kind, Piece, TarReader

FOLDER_MODE: Final = 0o755
NAME_BYTES_MAX: Final = 4095  # PATH_MAX of linux/limits.h, less its final zero.
HOLE_BYTES: Final = 4096
"""Runs of so many zeros are not written to a file: the block of common file systems."""

_ZEROS: Final = bytes(HOLE_BYTES)
_ID_MAX: Final = 2**32 - 2  # The last one means "leave it" to chown(2).
_MTIME_NS_MAX: Final = 2**63 - 1
_FOLDER_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

Parts = tuple[str, ...]


def unpack(
    chunks: Iterable[bytes], folder: str, *, name: str | None, is_wrapped: bool, keep_owner: bool
) -> None:
    """Unpack an archive into `folder`, which exists. What was unpacked before a failure stays.

    Args:
        name: what the archive's one tree or file is called here; None: it is the content of `folder`.
        is_wrapped: the first part of each name in the archive is that of the tree, instead of which `name`
            stands; else the names begin at it.
        keep_owner: users, groups and set-user-id bits are those of the archive; else they are the caller's.

    Raises:
        ArchiveUnsafe, TarDamaged: the archive is not to be unpacked.
        HostPathNotFound, HostPathNotDirectory, HostPathIsDirectory, HostPermissionDenied, HostDiskFull,
        HostFileFailed: a file could not be written.
    """
    reader = TarReader()
    with _Unpacking(folder, _Names(name, is_wrapped), keep_owner=keep_owner) as unpacking:
        for chunk in chunks:
            for event in reader.feed(chunk):
                if isinstance(event, Piece):
                    unpacking.write(event)
                elif isinstance(event, EntryEnd):
                    unpacking.finish_entry()
                else:
                    unpacking.add(event)
        reader.close()
        unpacking.finish()


@dataclass(frozen=True, slots=True)
class _Names:
    """What names of the archive are called here; see `unpack`."""

    name: str | None
    is_wrapped: bool

    def place(self, name: str) -> Parts:
        """Return where a name of the archive is below the folder.

        Raises:
            ArchiveUnsafe: it is no name of something in there.
        """
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if ".." in parts or "\0" in name or len(os.fsencode(name)) > NAME_BYTES_MAX:
            raise ArchiveUnsafe(f"The archive holds the name {name[:80]!a}, which is none of its tree")
        if self.is_wrapped and not parts:
            raise ArchiveUnsafe("The archive holds a name without parts")
        return (() if self.name is None else (self.name,)) + (parts[1:] if self.is_wrapped else parts)


class _Unpacking:
    def __init__(self, folder: str, names: _Names, *, keep_owner: bool) -> None:
        self._folder = folder
        self._names = names
        self._keep_owner = keep_owner
        with about(folder):
            self._root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._parent: tuple[Parts, int] | None = None  # Archives list a folder's files one after the other.
        self._file: _NewFile | None = None
        self._open: list[tuple[Parts, Entry]] = []  # Folders entered, the innermost last.

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.discard()
        if self._parent is not None:
            os.close(self._parent[1])
        os.close(self._root)

    def add(self, entry: Entry) -> None:
        """Make what `entry` says; a file is kept open for its content."""
        parts = self._names.place(entry.name)
        while self._open and self._open[-1][0] != parts[: len(self._open[-1][0])]:
            self._finish_folder(*self._open.pop())
        if not parts:
            if entry.kind is not Kind.DIRECTORY:
                raise ArchiveUnsafe("The archive holds a file where it should hold a folder")
            return  # The folder itself, which was there before and is left as it is.
        shown = os.path.join(self._folder, *parts)
        with about(shown):
            parent, name = self._enter(parts[:-1]), parts[-1]
            match entry.kind:
                case Kind.FILE:
                    self._file = _NewFile(parent, name, shown, entry)
                case Kind.DIRECTORY:
                    self._make_folder(parent, name, shown)
                    self._open.append((parts, entry))
                case Kind.SYMLINK:
                    if "\0" in entry.link:
                        raise ArchiveUnsafe(
                            f"The archive holds the link {entry.link[:80]!a}, which no link can be"
                        )
                    with _new_name(parent, name) as temporary:
                        os.symlink(entry.link, temporary, dir_fd=parent)
                        self._attribute(temporary, parent, entry)
                case Kind.FIFO:
                    with _new_name(parent, name) as temporary:
                        os.mkfifo(temporary, 0o600, dir_fd=parent)
                        self._attribute(temporary, parent, entry)
                case Kind.HARDLINK:
                    self._link(self._names.place(entry.link), parent, name)
                case Kind.OTHER:
                    raise ArchiveUnsafe(
                        f"{printable(entry.name)} is a device, and devices of guests are not made here",
                        remedy="write the archive to a file instead: ramet cp INSTANCE:PATH - >archive.tar",
                    )

    def write(self, piece: Piece) -> None:
        """Write content of the file that was added last."""
        if self._file is not None:
            self._file.write(piece)

    def finish_entry(self) -> None:
        """Move the file that was added last, if it was one, to its name."""
        if self._file is not None:
            file, self._file = self._file, None
            file.keep(lambda fd, entry: self._attribute(fd, None, entry))

    def finish(self) -> None:
        """Set the modes and times of all folders that are still open."""
        while self._open:
            self._finish_folder(*self._open.pop())

    def _make_folder(self, parent: int, name: str, shown: str) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
                raise HostPathNotDirectory(
                    f"on this host: {printable(shown)} exists and is no directory, and cannot become one",
                    remedy="remove it first, or choose another place",
                ) from None

    def _finish_folder(self, parts: Parts, entry: Entry) -> None:
        with about(os.path.join(self._folder, *parts)):
            fd = os.open(parts[-1], _FOLDER_FLAGS, dir_fd=self._enter(parts[:-1]))
            try:
                self._attribute(fd, None, entry)
            finally:
                os.close(fd)

    def _link(self, target: Parts, parent: int, name: str) -> None:
        if not target:
            raise ArchiveUnsafe("The archive holds a hard link to its folder")
        folder = os.dup(parent)  # Entering another folder closes the one before.
        try:
            with _new_name(folder, name) as temporary:
                at = self._enter(target[:-1])
                os.link(target[-1], temporary, src_dir_fd=at, dst_dir_fd=folder, follow_symlinks=False)
        finally:
            os.close(folder)

    def _enter(self, parts: Parts) -> int:
        """Return a descriptor of a folder, made where it is missing; it lives until the next call."""
        if not parts:
            return self._root
        if self._parent is not None:
            if self._parent[0] == parts:
                return self._parent[1]
            os.close(self._parent[1])
            self._parent = None
        fd = os.dup(self._root)
        for index, part in enumerate(parts):
            outer = fd
            try:
                fd = self._step(outer, parts[: index + 1], part)
            finally:
                os.close(outer)
        self._parent = (parts, fd)
        return fd

    def _step(self, outer: int, parts: Parts, name: str) -> int:
        try:
            return os.open(name, _FOLDER_FLAGS, dir_fd=outer)
        except FileNotFoundError:
            os.mkdir(name, 0o700, dir_fd=outer)
            fd = os.open(name, _FOLDER_FLAGS, dir_fd=outer)
            os.fchmod(fd, FOLDER_MODE)
            return fd
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                raise HostPathNotDirectory(
                    f"on this host: {printable(os.path.join(self._folder, *parts))} is no directory, and"
                    " links are not followed",
                    remedy="remove it first, or choose another place",
                ) from error
            raise

    def _attribute(self, what: int | str, parent: int | None, entry: Entry) -> None:
        """Give a descriptor, or a name in `parent`, owner, mode and time of `entry`; never through a link."""
        is_link = entry.kind is Kind.SYMLINK
        if self._keep_owner:
            if not (0 <= entry.uid <= _ID_MAX and 0 <= entry.gid <= _ID_MAX):
                raise ArchiveUnsafe(f"{printable(entry.name)} belongs to a user or group that cannot be")
            self._give_away(what, parent, entry)
        if not is_link:  # Before the time, behind the owner: chown takes set-user-id bits away.
            os.chmod(what, entry.mode if self._keep_owner else entry.mode & 0o1777, dir_fd=parent)
        mtime_ns = max(-_MTIME_NS_MAX, min(_MTIME_NS_MAX, entry.mtime_ns))
        if isinstance(what, int):
            os.utime(what, ns=(mtime_ns, mtime_ns))
        else:
            os.utime(what, ns=(mtime_ns, mtime_ns), dir_fd=parent, follow_symlinks=False)

    @staticmethod
    def _give_away(what: int | str, parent: int | None, entry: Entry) -> None:
        try:
            if isinstance(what, int):
                os.chown(what, entry.uid, entry.gid)
            else:
                os.chown(what, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        except PermissionError as error:
            owner = f"user {entry.uid}, group {entry.gid}"
            raise HostPermissionDenied(
                f"on this host: {printable(entry.name)} cannot be given to {owner}",
                remedy="run as root, or leave --archive out",
            ) from error


class _NewFile:
    """A file that has its name only when it is whole."""

    def __init__(self, parent: int, name: str, shown: str, entry: Entry) -> None:
        self._parent = os.dup(parent)
        self._name, self._shown, self._entry = name, shown, entry
        self._temporary = _temporary_name()
        try:
            self._fd = os.open(self._temporary, _FILE_FLAGS, 0o600, dir_fd=self._parent)
        except BaseException:
            os.close(self._parent)
            raise

    def write(self, piece: Piece) -> None:
        with about(self._shown):
            for begin, end in _runs_of_data(piece.data):
                view = memoryview(piece.data)[begin:end]
                while view:
                    written_bytes = os.pwrite(self._fd, view, piece.offset + begin)
                    view, begin = view[written_bytes:], begin + written_bytes

    def keep(self, attribute: Callable[[int, Entry], None]) -> None:
        try:
            with about(self._shown):
                os.ftruncate(self._fd, self._entry.size_bytes)
                attribute(self._fd, self._entry)
                _move(self._temporary, self._name, self._parent)
        finally:
            self.discard()

    def discard(self) -> None:
        """Close it; without `keep`, nothing is left of it."""
        os.close(self._fd)
        try:
            with suppress(FileNotFoundError):  # It has been kept.
                os.unlink(self._temporary, dir_fd=self._parent)
        finally:
            os.close(self._parent)


def _runs_of_data(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of what is in `data` between blocks of zeros."""
    begin = 0
    for at in range(0, len(data), HOLE_BYTES):
        if _ZEROS.startswith(data[at : at + HOLE_BYTES]):
            if begin < at:
                yield begin, at
            begin = at + HOLE_BYTES
    if begin < len(data):
        yield begin, len(data)


def _temporary_name() -> str:
    return f".ramet-copy-{secrets.token_hex(8)}"


@contextmanager
def _new_name(folder: int, name: str) -> Iterator[str]:
    """Yield a name under which to make something, which is moved to its own at the end."""
    temporary = _temporary_name()
    try:
        yield temporary
        _move(temporary, name, folder)
    finally:
        with suppress(FileNotFoundError):  # As it should be.
            os.unlink(temporary, dir_fd=folder)


def _move(temporary: str, name: str, folder: int) -> None:
    try:
        # If both are links to one file this does nothing; what is left is removed by the caller.
        os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except IsADirectoryError as error:
        raise HostPathIsDirectory(
            f"on this host: {printable(name)} is a directory, and cannot become a file",
            remedy="choose another name, or remove the directory first",
        ) from error
