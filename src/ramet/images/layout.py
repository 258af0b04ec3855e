"""An OCI image layout in a folder: `oci-layout`, `index.json` and `blobs/<algorithm>/<hex>`.

The folder is a stranger's: it may hold pipes that block whoever opens them, and links to anywhere. Only
regular files are read, and what a link leads to counts only if it has the right digest.
"""

import errno
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

from ramet.images.documents import Descriptor, parse_index, parse_object
from ramet.images.errors import BlobMissing, ImageTooLarge, NotAnImage, UnsupportedMediaType
from ramet.images.limits import ImageLimits
from ramet.images.source import Candidate, group_by_name

LAYOUT_FILE: Final = "oci-layout"
INDEX_FILE: Final = "index.json"
LAYOUT_VERSION: Final = "1."  # Every 1.x can be read by a reader of 1.0.


def check_layout_version(content: bytes) -> None:
    """Check the content of `oci-layout`.

    Raises:
        InvalidManifest: it is not JSON.
        UnsupportedMediaType: it is of another version than 1.
    """
    version = parse_object(content, LAYOUT_FILE).get("imageLayoutVersion")
    if not isinstance(version, str) or not version.startswith(LAYOUT_VERSION):
        raise UnsupportedMediaType(f"The image layout is of the unknown version {str(version)[:50]!r}")


def blob_path(descriptor: Descriptor) -> str:
    """Return where a layout keeps a blob, relative to its root."""
    algorithm, _, digits = descriptor.digest.partition(":")
    return f"blobs/{algorithm}/{digits}"


class LayoutFolder:
    """The images in an OCI layout folder; a `Source`."""

    def __init__(self, folder: Path, limits: ImageLimits) -> None:
        self._folder = folder
        self._limits = limits

    def candidates(self) -> tuple[Candidate, ...]:
        check_layout_version(self._read(LAYOUT_FILE))
        return group_by_name(parse_index(self._read(INDEX_FILE)), self._folder.resolve().name)

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        try:
            return open_regular(self._folder / blob_path(descriptor))
        except FileNotFoundError as error:
            raise BlobMissing(f"The blob {descriptor.digest} is not in the layout") from error

    def _read(self, name: str) -> bytes:
        try:
            with open_regular(self._folder / name) as file:
                content = file.read(self._limits.document_bytes_max + 1)
        except FileNotFoundError as error:
            raise NotAnImage(f"{self._folder} is not an OCI layout: it has no {name}") from error
        if len(content) > self._limits.document_bytes_max:
            raise ImageTooLarge(f"{name} has more than {self._limits.document_bytes_max} bytes")
        return content


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading, and refuse all else that may lie there.

    Raises:
        FileNotFoundError: there is nothing.
        NotAnImage: it is a pipe, a device or a folder, or may not be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ENAMETOOLONG):
            raise FileNotFoundError(error.errno, error.strerror, str(path)) from error
        raise NotAnImage(f"{path} cannot be read: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise NotAnImage(f"{path} is not a regular file")
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise
