"""What can be wrong with files of this host, as errors with a remedy."""

import errno
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from ramet.core.errors import Broken, Conflict, Exhausted, Invalid, NotFound, RametError, Unsupported


class HostPathNotFound(NotFound):
    """There is nothing at a path of this host."""

    code = "host_path_not_found"


class HostPathNotDirectory(Invalid):
    """A path of this host is no directory and would have to be one."""

    code = "host_not_a_directory"
    remedy_default = "name a directory that exists"


class HostPathIsDirectory(Conflict):
    """A file cannot take the place of a directory of this host."""

    code = "host_is_a_directory"


class HostPathUnsupported(Unsupported):
    """What is at a path of this host is nothing that is copied: a device, a socket."""

    code = "host_path_unsupported"
    remedy_default = "copy files, folders and links"


class HostPermissionDenied(Conflict):
    """This user may not do that on this host."""

    code = "host_permission_denied"


class HostDiskFull(Exhausted):
    """The disk of this host, or the user's share of it, is full."""

    code = "host_disk_full"


class HostFileFailed(Broken):
    """The kernel of this host refused it for another reason."""

    code = "host_file_failed"


class ArchiveUnsafe(Invalid):
    """An archive holds what must not be unpacked: a name that leaves the folder, a device."""

    code = "archive_unsafe"
    remedy_default = "keep the archive as it is: ramet cp INSTANCE:PATH - >archive.tar"


_ERRORS: Final[Mapping[int, tuple[type[RametError], str]]] = {
    errno.ENOENT: (HostPathNotFound, ""),
    errno.ENOTDIR: (HostPathNotDirectory, "name a directory that exists"),
    errno.EISDIR: (HostPathIsDirectory, "choose another name, or remove the directory first"),
    errno.EACCES: (HostPermissionDenied, "choose a place you may use, or run as root"),
    errno.EPERM: (HostPermissionDenied, "choose a place you may use, or run as root"),
    errno.EROFS: (HostPermissionDenied, "choose another directory"),
    errno.ENOSPC: (HostDiskFull, "make room, or choose another directory"),
    errno.EDQUOT: (HostDiskFull, "make room, or choose another directory"),
}


@contextmanager
def about(path: str) -> Iterator[None]:
    """Raise an OSError from within as the error of ours that tells of `path`."""
    try:
        yield
    except OSError as error:
        kind, remedy = _ERRORS.get(error.errno or 0, (HostFileFailed, ""))
        reason = error.strerror or str(error)
        raise kind(f"on this host: {printable(path)}: {reason}", remedy=remedy) from error


def printable(path: str) -> str:
    """Return a path as it can be shown; bytes that are no text become replacement characters."""
    return os.fsencode(path).decode("utf-8", "replace")
