"""Layers into one folder, as a container engine would stack them.

A layer is a set of changes: files it adds or replaces, and whiteouts that hide files of the layers *below*
it, wherever in the layer they stand. Hence each layer remembers which paths are its own. Source of the
rules: the OCI image specification, layer.md.

Everything is done for real (owner, mode, device, capability), so it needs root; and the folder must be one
that nobody else can enter, since it will hold setuid programs.
"""

import base64
import binascii
import errno
import math
import os
import stat
import tarfile
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

from ramet.images.blobs import Readable
from ramet.images.errors import ConversionFailed, ImageTooLarge, LayerCorrupt, UnsafePath, storage_error
from ramet.images.limits import PATH_BYTES_MAX, ImageLimits
from ramet.images.rooted import Root, remove_tree, split_path
from ramet.images.tarstream import TarEntry, entries

WHITEOUT: Final = b".wh."
WHITEOUT_OPAQUE: Final = b".wh..wh..opq"
AUFS_PRIVATE: Final = b".wh..wh."  # Bookkeeping of an old storage driver, never content.
MTIME_S_MAX: Final = (1 << 34) - 1  # The year 2514; ext4 can store no more.
ID_MAX: Final = (1 << 32) - 2  # The one above means "leave as it is" to chown.

_XATTR_SCHILY: Final = "SCHILY.xattr."
_XATTR_LIBARCHIVE: Final = "LIBARCHIVE.xattr."
# Others are the host's own business (security.selinux) or would steer the guest's overlay (trusted.overlay).
_XATTRS_KEPT: Final = ("security.capability", "system.posix_acl_access", "system.posix_acl_default")
_XATTR_USER: Final = "user."
_XATTR_OVERLAY: Final = "user.overlay."

_CORRUPT_ERRNOS: Final = frozenset(
    {
        errno.EEXIST,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.EMLINK,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENOTEMPTY,
    }
)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """What `Staging.finish` found.

    Attributes:
        entry_count: tar entries applied, of all layers.
        size_bytes: logical bytes of all files written.
        mtime_s_max: no file is younger than this; seconds since 1970.
    """

    entry_count: int
    size_bytes: int
    mtime_s_max: int


class Staging:
    """A folder that layers are applied to, lowest first. Blocks; use it from one thread, not the event loop.

    Args:
        folder: empty, on a file system with owners, devices and xattrs.
        limits: bounds on the sum of all layers.
        check: called before every entry; raises to stop.
        is_layer: what is added are layers, in which whiteouts hide; otherwise every name is a file's.
    """

    def __init__(
        self,
        folder: Path,
        limits: ImageLimits,
        check: Callable[[], None] = lambda: None,
        *,
        is_layer: bool = True,
    ) -> None:
        self._root = Root(folder)
        self._limits = limits
        self._check = check
        self._is_layer = is_layer
        self._own: set[bytes] = set()
        self._folder_mtimes_ns: dict[bytes, int] = {}
        self._entry_count = 0
        self._size_bytes = 0
        self._mtime_ns_max = 0

    def __enter__(self) -> "Staging":
        return self

    def __exit__(self, *_: object) -> None:
        self._root.__exit__(None, None, None)

    def add_layer(self, stream: Readable) -> None:
        """Apply the changes of one uncompressed tar stream. On an error the folder is of no more use.

        Raises:
            LayerCorrupt: the stream is no tar archive, or contradicts the layers below.
            UnsafePath: an entry names a path outside the image.
            ImageTooLarge: all layers together exceed the limits.
            StorageFull: the disk is full.
            ConversionFailed: the host refused something, such as a device node to a process not root.
        """
        self.add(entries(stream))

    def add(self, found: Iterable[TarEntry]) -> None:
        """Apply the changes of entries that somebody else reads; errors as of `add_layer`."""
        self._own = set()
        for entry in found:
            self._check()
            self._entry_count += 1
            if self._entry_count > self._limits.entry_count_max:
                raise ImageTooLarge(
                    f"The image has more than {self._limits.entry_count_max} entries",
                    entry_count_max=self._limits.entry_count_max,
                )
            with _named(entry.info.name):
                self._apply(entry)

    def finish(self) -> Unpacked:
        """Give every folder its time, now that nothing is put into it any more."""
        self._restore_times(b"", os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._root.fd))
        return Unpacked(self._entry_count, self._size_bytes, -(-self._mtime_ns_max // 10**9))

    def _apply(self, entry: TarEntry) -> None:
        parts = split_path(entry.info.name)
        is_layer = self._is_layer
        if is_layer and any(part.startswith(AUFS_PRIVATE) and part != WHITEOUT_OPAQUE for part in parts):
            return
        if is_layer and any(part.startswith(WHITEOUT) for part in parts[:-1]):
            raise LayerCorrupt(f"{entry.info.name[:200]!a} lies below a whiteout")
        if not parts:
            if not entry.info.isdir():
                raise LayerCorrupt("A layer replaces the root folder by something else")
            self._set_folder(b".", self._root.fd, b"", entry.info)
        elif is_layer and parts[-1].startswith(WHITEOUT):
            self._hide(parts)
        else:
            parent_fd, parent = self._root.open_folder(parts[:-1], create=True)
            try:
                path = parent + b"/" + parts[-1]
                if len(path) > PATH_BYTES_MAX:
                    raise UnsafePath(f"A layer makes a path of {len(path)} bytes")
                self._put(parts[-1], parent_fd, path, entry)
            finally:
                os.close(parent_fd)
            while path and path not in self._own:
                self._own.add(path)
                path = path.rpartition(b"/")[0]

    # Whiteouts

    def _hide(self, parts: tuple[bytes, ...]) -> None:
        try:
            parent_fd, parent = self._root.open_folder(parts[:-1], create=False)
        except (FileNotFoundError, NotADirectoryError):
            return  # Nothing below to hide.
        try:
            if parts[-1] == WHITEOUT_OPAQUE:
                self._hide_below(b".", parent_fd, parent)
                return
            name = parts[-1].removeprefix(WHITEOUT)
            if name in (b"", b".", b".."):
                raise UnsafePath(f"The whiteout {os.fsdecode(parts[-1])!a} hides no file's name")
            self._hide_one(name, parent_fd, parent + b"/" + name)
        finally:
            os.close(parent_fd)

    def _hide_one(self, name: bytes, parent_fd: int, path: bytes) -> None:
        found = _lstat(name, parent_fd)
        if found is None:
            return
        if path not in self._own:
            remove_tree(name, parent_fd)
        elif stat.S_ISDIR(found.st_mode):
            self._hide_below(name, parent_fd, path)

    def _hide_below(self, name: bytes, parent_fd: int, path: bytes) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
        try:
            for child in map(os.fsencode, os.listdir(fd)):
                self._hide_one(child, fd, path + b"/" + child)
        finally:
            os.close(fd)

    # Entries

    def _put(self, name: bytes, parent_fd: int, path: bytes, entry: TarEntry) -> None:
        info = entry.info
        found = _lstat(name, parent_fd)
        if info.islnk():
            self._link(name, parent_fd, info, found)
            return
        if found is not None and not (info.isdir() and stat.S_ISDIR(found.st_mode)):
            remove_tree(name, parent_fd)
            found = None
        if info.isdir():
            if found is None:
                os.mkdir(name, 0o700, dir_fd=parent_fd)
            self._set_folder(name, parent_fd, path, info)
        elif info.isreg():
            self._write(name, parent_fd, entry)
        elif info.issym():
            target = info.linkname.encode("utf-8", "surrogateescape")
            os.symlink(target, name, dir_fd=parent_fd)
            self._set_attributes(name, parent_fd, info, _XATTRS_KEPT)
        elif info.ischr() or info.isblk():
            kind = stat.S_IFCHR if info.ischr() else stat.S_IFBLK
            os.mknod(name, kind | 0o600, os.makedev(info.devmajor, info.devminor), dir_fd=parent_fd)
            self._set_attributes(name, parent_fd, info, _XATTRS_KEPT)
        elif info.isfifo():
            os.mkfifo(name, 0o600, dir_fd=parent_fd)
            self._set_attributes(name, parent_fd, info, _XATTRS_KEPT)
        else:
            raise LayerCorrupt(
                f"{info.name[:200]!a} is of the unknown type {info.type!a}", type=repr(info.type)
            )

    def _link(self, name: bytes, parent_fd: int, info: tarfile.TarInfo, found: os.stat_result | None) -> None:
        target = split_path(info.linkname)
        if not target:
            raise LayerCorrupt(f"{info.name[:200]!a} is a hard link to the root folder")
        try:
            target_fd, _ = self._root.open_folder(target[:-1], create=False)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise LayerCorrupt(f"{info.name[:200]!a} is a hard link to what is not there") from error
        try:
            other = _lstat(target[-1], target_fd)
            if other is None or stat.S_ISDIR(other.st_mode):
                raise LayerCorrupt(f"{info.name[:200]!a} is a hard link to what is not there or is a folder")
            if found is not None:
                if (found.st_dev, found.st_ino) == (other.st_dev, other.st_ino):
                    return  # Already that very file; to remove it first could remove the only name.
                remove_tree(name, parent_fd)
            os.link(target[-1], name, src_dir_fd=target_fd, dst_dir_fd=parent_fd, follow_symlinks=False)
        finally:
            os.close(target_fd)

    def _write(self, name: bytes, parent_fd: int, entry: TarEntry) -> None:
        self._size_bytes += entry.size_bytes
        if self._size_bytes > self._limits.image_bytes_max:
            raise ImageTooLarge(
                f"The image has more than {self._limits.image_bytes_max} bytes of files",
                image_bytes_max=self._limits.image_bytes_max,
            )
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent_fd)
        try:
            for offset, piece in entry.pieces():
                view = memoryview(piece)
                while view:
                    count = os.pwrite(fd, view, offset)
                    view, offset = view[count:], offset + count
            os.ftruncate(fd, entry.size_bytes)
        finally:
            os.close(fd)
        self._set_attributes(name, parent_fd, entry.info, (*_XATTRS_KEPT, _XATTR_USER))

    # Attributes

    def _set_folder(self, name: bytes, parent_fd: int, path: bytes, info: tarfile.TarInfo) -> None:
        place = b"/proc/self/fd/%d/%s" % (parent_fd, name)
        for stale in os.listxattr(place, follow_symlinks=False):
            os.removexattr(place, stale, follow_symlinks=False)
        self._set_attributes(name, parent_fd, info, (*_XATTRS_KEPT, _XATTR_USER))
        self._folder_mtimes_ns[path] = _mtime_ns(info)

    def _set_attributes(
        self, name: bytes, parent_fd: int, info: tarfile.TarInfo, kept: tuple[str, ...]
    ) -> None:
        # In this order: chown clears setuid bits and capabilities.
        if not 0 <= info.uid <= ID_MAX or not 0 <= info.gid <= ID_MAX:
            raise LayerCorrupt(f"{info.name[:200]!a} belongs to {info.uid}:{info.gid}")
        os.chown(name, info.uid, info.gid, dir_fd=parent_fd, follow_symlinks=False)
        if not info.issym():
            # No race: the name was made by us, of this type, in a folder nobody else can enter.
            os.chmod(name, info.mode & 0o7777, dir_fd=parent_fd)
        place = b"/proc/self/fd/%d/%s" % (parent_fd, name)
        for key, value in _xattrs(info).items():
            if key.startswith(kept) and not key.startswith(_XATTR_OVERLAY):
                _set_xattr(place, key, value, info.name)
        mtime_ns = _mtime_ns(info)
        self._mtime_ns_max = max(self._mtime_ns_max, mtime_ns)
        os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=parent_fd, follow_symlinks=False)

    def _restore_times(self, path: bytes, fd: int) -> None:
        try:
            with os.scandir(fd) as found:
                folders = [os.fsencode(item.name) for item in found if item.is_dir(follow_symlinks=False)]
            for name in folders:
                self._check()
                child_fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                self._restore_times(path + b"/" + name, child_fd)
            # A folder no layer describes has no time of its own; a fixed one keeps the result the same.
            mtime_ns = self._folder_mtimes_ns.get(path, 0)
            os.utime(fd, ns=(mtime_ns, mtime_ns))
        finally:
            os.close(fd)


def _lstat(name: bytes, parent_fd: int) -> os.stat_result | None:
    try:
        return os.lstat(name, dir_fd=parent_fd)
    except FileNotFoundError:
        return None


def _mtime_ns(info: tarfile.TarInfo) -> int:
    text = info.pax_headers.get("mtime")
    # The header's own float has too few digits for nanoseconds.
    try:
        seconds = float(text) if text is not None else float(info.mtime)
        if not math.isfinite(seconds):
            raise ValueError(text)
        if not 0 <= seconds <= MTIME_S_MAX:
            return 0 if seconds < 0 else MTIME_S_MAX * 10**9
        return int(Decimal(text) * 10**9) if text is not None else int(seconds) * 10**9
    except (ValueError, ArithmeticError) as error:
        raise LayerCorrupt(f"{info.name[:200]!a} has no valid time of change") from error


def _xattrs(info: tarfile.TarInfo) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for key, value in info.pax_headers.items():
        if key.startswith(_XATTR_LIBARCHIVE):
            name = urllib.parse.unquote(key.removeprefix(_XATTR_LIBARCHIVE), errors="surrogateescape")
            try:
                found.setdefault(name, base64.b64decode(value + "=" * (-len(value) % 4), validate=True))
            except (binascii.Error, ValueError) as error:
                raise LayerCorrupt(f"{info.name[:200]!a} has a damaged attribute {name[:100]!a}") from error
    for key, value in info.pax_headers.items():
        if key.startswith(_XATTR_SCHILY):
            found[key.removeprefix(_XATTR_SCHILY)] = value.encode("utf-8", "surrogateescape")
    return found


def _set_xattr(place: bytes, key: str, value: bytes, name: str) -> None:
    try:
        os.setxattr(place, key, value, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ERANGE, errno.ENAMETOOLONG):
            raise LayerCorrupt(f"{name[:200]!a} has an invalid attribute {key[:100]!a}") from error
        # Also ENOSPC: some file systems have 4 KiB for all attributes of a file, however empty the disk.
        raise ConversionFailed(
            f"The attribute {key[:100]!a} of {name[:200]!a} cannot be stored: {error.strerror}",
            remedy="keep images on ext4, xfs or btrfs",
        ) from error


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turn what the kernel or Python says about an entry into one of our errors."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise storage_error(error) from error
        if error.errno in _CORRUPT_ERRNOS:
            raise LayerCorrupt(f"{name[:200]!a} cannot be made: {error.strerror}", path=name[:200]) from error
        remedy = "run as root" if error.errno in (errno.EPERM, errno.EACCES) else ""
        raise ConversionFailed(f"{name[:200]!a} cannot be made: {error.strerror}", remedy=remedy) from error
    except (OverflowError, ValueError) as error:
        raise LayerCorrupt(f"{name[:200]!a} cannot be made: {error}", path=name[:200]) from error
