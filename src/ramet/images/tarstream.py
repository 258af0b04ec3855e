"""A tar stream from a stranger, entry by entry.

`tarfile` knows every dialect of the format, but trusts its input: it reads a header of any length into
memory and takes a damaged header for the end of the archive. Here it sees the stream through a cursor
that only goes forward and lends out a bounded number of bytes for each entry's headers.
"""

import io
import tarfile
from collections.abc import Callable, Iterator
from typing import IO, Final, cast

from ramet.images.blobs import CHUNK_BYTES, Readable
from ramet.images.errors import LayerCorrupt
from ramet.images.limits import HEADER_BYTES_MAX

# What `tarfile` raises for input it did not expect (Python 3.11 to 3.14).
_PARSE_ERRORS: Final = (
    tarfile.TarError,
    ValueError,
    IndexError,
    KeyError,
    OverflowError,
    RecursionError,
)


class _StrictTarInfo(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_StrictTarInfo":
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            # Nothing and zeros end an archive. Anything else is damage, which `tarfile` would take for
            # the end too, except in the first header.
            if not bytes(buf).strip(b"\0"):
                raise
            raise LayerCorrupt(f"A tar header is damaged: {error}") from error


class _Cursor(io.RawIOBase):
    """The stream as `tarfile` may see it: forward only, headers of bounded length."""

    def __init__(self, inner: Readable, skip: Callable[[int], object] | None) -> None:
        super().__init__()
        self._inner = inner
        self._skip = skip
        self._offset = 0
        self.header_bytes_left: int | None = HEADER_BYTES_MAX

    def tell(self) -> int:
        return self._offset

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence != 0 or offset < self._offset:
            raise LayerCorrupt("A tar entry has a negative length")
        if self._skip is not None:
            self._skip(offset - self._offset)  # Beyond the end too; the next read will tell.
            self._offset = offset
        while self._offset < offset:
            piece = self._inner.read(min(CHUNK_BYTES, offset - self._offset))
            if not piece:
                raise LayerCorrupt("The tar stream ends inside an entry")
            self._offset += len(piece)
        return self._offset

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            raise LayerCorrupt("A tar header has a negative length")
        if self.header_bytes_left is not None:
            self.header_bytes_left -= size
            if self.header_bytes_left < 0:
                raise LayerCorrupt(f"The tar headers of one entry exceed {HEADER_BYTES_MAX} bytes")
        piece = self._inner.read(size)
        self._offset += len(piece)
        return piece


class TarEntry:
    """One entry and, while it is the current one, its content.

    Attributes:
        info: the parsed header. Its strings carry undecodable bytes as surrogates.
        size_bytes: logical length, holes included.
    """

    def __init__(self, info: tarfile.TarInfo, cursor: _Cursor, end_offset: int) -> None:
        self.info = info
        self.size_bytes = info.size
        self._cursor = cursor
        self._end_offset = end_offset

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """Yield the content as (offset in the file, bytes), ascending; what lies between is a hole.

        Raises:
            LayerCorrupt: the stream ends early or the map of holes contradicts itself.
        """
        sparse = cast("list[tuple[int, int]] | None", getattr(self.info, "sparse", None))
        position = 0
        for start, length in sparse if sparse is not None else [(0, self.size_bytes)]:
            if length == 0:
                continue  # The end of the file, or padding of the map.
            if start < position or length < 0 or start + length > self.size_bytes:
                raise LayerCorrupt("A sparse file's map of holes contradicts itself")
            if self._cursor.tell() + length > self._end_offset:
                raise LayerCorrupt("A sparse file is longer than its tar entry")
            position = start
            while position < start + length:
                piece = self._cursor.read(min(CHUNK_BYTES, start + length - position))
                if not piece:
                    raise LayerCorrupt("The tar stream ends inside a file")
                yield position, piece
                position += len(piece)


def entries(stream: Readable, skip: Callable[[int], object] | None = None) -> Iterator[TarEntry]:
    """Yield the entries of `stream` in order; each is valid until the next is asked for.

    Args:
        stream: uncompressed.
        skip: passes over that many bytes, where `stream` can do that faster than by reading.

    Raises:
        LayerCorrupt: the stream is not a whole tar archive.
    """
    cursor = _Cursor(stream, skip)
    archive: tarfile.TarFile | None = None
    while True:
        cursor.header_bytes_left = HEADER_BYTES_MAX
        try:
            if archive is None:
                archive = tarfile.TarFile(
                    fileobj=cast("IO[bytes]", cursor),
                    mode="r",
                    tarinfo=_StrictTarInfo,
                    encoding="utf-8",
                    errors="surrogateescape",
                )
            info = archive.next()
        except _PARSE_ERRORS as error:
            raise LayerCorrupt(f"The layer is not a tar archive we can read: {error}") from error
        if info is None:
            return
        # An archive of a million entries must not be a list of a million headers; nor may global
        # headers, which hold for all that follow, add up to more than one entry's.
        archive.members.clear()  # type: ignore[attr-defined] # Missing in typeshed.
        if sum(len(key) + len(value) for key, value in archive.pax_headers.items()) > HEADER_BYTES_MAX:
            raise LayerCorrupt(f"The tar's global headers exceed {HEADER_BYTES_MAX} bytes")
        if info.size < 0:
            raise LayerCorrupt("A tar entry has a negative length")
        cursor.header_bytes_left = None
        yield TarEntry(info, cursor, archive.offset)
