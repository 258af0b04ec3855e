"""Paths that cannot leave a folder, whatever symbolic links lie in it.

Earlier layers of an image choose the links through which later ones write. So the kernel resolves every
path as if the folder were `/` (openat2 with RESOLVE_IN_ROOT, Linux 5.6), and what is then done names one
last component relative to an open descriptor and never follows it.
"""

import ctypes
import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

from ramet.images.errors import LayerCorrupt, UnsafePath
from ramet.images.limits import PATH_BYTES_MAX, PATH_DEPTH_MAX

# <asm-generic/unistd.h>, <linux/openat2.h>
SYS_openat2: Final = 437
RESOLVE_IN_ROOT: Final = 0x10

RESOLVE_ATTEMPT_COUNT_MAX: Final = 64  # EAGAIN: a rename or mount anywhere raced with "..".
FOLDER_MODE: Final = 0o755

_O_FOLDER: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_libc: Final = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def split_path(name: str) -> tuple[bytes, ...]:
    """Return the components of a path inside an image; a leading "/" means the image's own root.

    Raises:
        UnsafePath: it has a component "..", a NUL, or more bytes or components than any honest path.
    """
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise UnsafePath(f"A layer names a path that is not text: {name[:200]!a}") from error
    parts = tuple(part for part in raw.split(b"/") if part not in (b"", b"."))
    if b".." in parts or b"\0" in raw:
        raise UnsafePath(f"A layer names a path that leaves the image: {name[:200]!a}", path=name[:200])
    if len(raw) > PATH_BYTES_MAX or len(parts) > PATH_DEPTH_MAX:
        raise UnsafePath(
            f"A layer names a path of {len(raw)} bytes and {len(parts)} components", path=name[:200]
        )
    return parts


class Root:
    """A folder that stands for `/`. Use as a context manager; not for several threads at once."""

    def __init__(self, folder: Path) -> None:
        self.fd = os.open(folder, _O_FOLDER)
        self._prefix = self._where(self.fd)

    def __enter__(self) -> "Root":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)

    def open_folder(self, parts: Sequence[bytes], *, create: bool) -> tuple[int, bytes]:
        """Open the folder at `parts`, following links inside the root only.

        Args:
            parts: components as from `split_path`; none is the root itself.
            create: make what is missing, mode 0755, owned by root.

        Returns:
            An O_PATH descriptor, the caller's to close, and the folder's path from the root with every link
            resolved: b"" for the root, otherwise b"/a/b".

        Raises:
            FileNotFoundError, NotADirectoryError: it is not there and `create` is false.
            LayerCorrupt: something else than a folder is in the way.
            UnsafePath: the links form a loop, or the path becomes too deep.
        """
        try:
            fd = self._resolve(b"/".join(parts) or b".")
        except FileNotFoundError:
            if not create:
                raise
            fd = self._make(parts)
        except NotADirectoryError as error:
            if not create:
                raise
            raise LayerCorrupt(f"A layer puts {os.fsdecode(b'/'.join(parts))!a} below a file") from error
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENAMETOOLONG):
                raise
            raise UnsafePath(f"The links of {os.fsdecode(b'/'.join(parts))!a} have no end") from error
        try:
            return fd, self._canonical(fd)
        except BaseException:
            os.close(fd)
            raise

    def _make(self, parts: Sequence[bytes]) -> int:
        parent = self._resolve(b".")
        try:
            for count, name in enumerate(parts, start=1):
                try:
                    child = self._resolve(b"/".join(parts[:count]))
                except FileNotFoundError:
                    self._canonical(parent)
                    try:
                        os.mkdir(name, dir_fd=parent)
                    except FileExistsError as error:
                        raise LayerCorrupt(
                            f"A layer writes through the dangling link {os.fsdecode(name)!a}"
                        ) from error
                    child = os.open(name, _O_FOLDER | os.O_NOFOLLOW, dir_fd=parent)
                    os.chmod(f"/proc/self/fd/{child}", FOLDER_MODE)
                parent, old = child, parent
                os.close(old)
        except BaseException:
            os.close(parent)
            raise
        return parent

    def _resolve(self, path: bytes) -> int:
        how = _OpenHow(flags=_O_FOLDER, mode=0, resolve=RESOLVE_IN_ROOT)
        for _ in range(RESOLVE_ATTEMPT_COUNT_MAX):
            fd: int = _libc.syscall(
                ctypes.c_long(SYS_openat2),
                ctypes.c_int(self.fd),
                ctypes.c_char_p(path),
                ctypes.byref(how),
                ctypes.c_size_t(ctypes.sizeof(how)),
            )
            if fd >= 0:
                return fd
            if ctypes.get_errno() != errno.EAGAIN:
                break
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fsdecode(path))

    def _canonical(self, fd: int) -> bytes:
        path = self._where(fd).removeprefix(self._prefix)
        # Links can lengthen a path beyond what its entry's name showed.
        if len(path) > PATH_BYTES_MAX or path.count(b"/") >= PATH_DEPTH_MAX:
            raise UnsafePath(f"A layer makes a path of {len(path)} bytes", path=os.fsdecode(path[:200]))
        return path

    @staticmethod
    def _where(fd: int) -> bytes:
        return os.readlink(b"/proc/self/fd/%d" % fd)


def remove_tree(name: bytes, parent_fd: int) -> None:
    """Remove `name` in the folder `parent_fd`, and all below it if it is a folder; never follows a link."""
    if not stat.S_ISDIR(os.lstat(name, dir_fd=parent_fd).st_mode):
        os.unlink(name, dir_fd=parent_fd)
        return
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
    try:
        for child in os.listdir(fd):
            remove_tree(os.fsencode(child), fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent_fd)
