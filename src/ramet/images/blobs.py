"""Bytes that prove what they are while they are read.

No blob is trusted because of where it lay: each is hashed on its way through, and whoever asked learns at
its end whether it was the right one. Nothing of an image is published before that.
"""

import gzip
import hashlib
import io
import sys
import zlib
from collections.abc import Callable
from typing import BinaryIO, Final, Protocol, cast

from ramet.images.documents import Descriptor
from ramet.images.errors import DigestMismatch, ImageTooLarge, LayerCorrupt
from ramet.images.reference import Digest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CHUNK_BYTES: Final = 256 << 10
ZSTD_WINDOW_LOG_MAX: Final = 27  # 128 MiB of memory; what `zstd -d` itself accepts unasked.

_GZIP_MAGIC: Final = b"\x1f\x8b"
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE_MAGIC: Final = b"\x2a\x4d\x18"  # Preceded by 0x50 to 0x5f.


class Readable(Protocol):
    """What has bytes to give, as every file object."""

    def read(self, size: int, /) -> bytes: ...


class Peekable(Readable, Protocol):
    """What also shows its next bytes without passing them, as `io.BufferedReader`."""

    def peek(self, size: int, /) -> bytes: ...


class HashedReader(io.RawIOBase):
    """Counts and hashes what is read through it.

    Args:
        inner: where the bytes come from; not closed by us.
        digest: what they must turn out to be.
        bytes_max: more than this is refused.
        excess: makes the error for that.
        on_bytes: called with the length of every piece; may raise to stop.
    """

    def __init__(
        self,
        inner: Readable,
        digest: Digest,
        bytes_max: int,
        excess: Callable[[], Exception],
        on_bytes: Callable[[int], None] = lambda _: None,
    ) -> None:
        super().__init__()
        self._inner = inner
        self._digest = digest
        self._bytes_max = bytes_max
        self._excess = excess
        self._on_bytes = on_bytes
        self._hash = hashlib.new(digest.partition(":")[0])
        self.byte_count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        piece = self._inner.read(len(buffer))
        self.byte_count += len(piece)
        if self.byte_count > self._bytes_max:
            raise self._excess()
        self._hash.update(piece)
        self._on_bytes(len(piece))
        buffer[: len(piece)] = piece
        return len(piece)

    def drain(self) -> None:
        """Read what is left and forget it."""
        while self.read(CHUNK_BYTES):
            pass

    def verify(self) -> None:
        """Check the digest of everything read so far.

        Raises:
            DigestMismatch: the bytes are not those promised.
        """
        found = f"{self._digest.partition(':')[0]}:{self._hash.hexdigest()}"
        if found != self._digest:
            raise DigestMismatch(
                f"A blob has the digest {found} and should have {self._digest}",
                expected=self._digest,
                found=found,
            )


def open_verified(blob: Readable, descriptor: Descriptor, on_bytes: Callable[[int], None]) -> HashedReader:
    """Return a reader of `blob` that holds it to its descriptor's size and digest."""
    return HashedReader(
        blob,
        descriptor.digest,
        descriptor.size_bytes,
        lambda: DigestMismatch(
            f"The blob {descriptor.digest} is longer than the {descriptor.size_bytes} bytes promised",
            expected=descriptor.digest,
        ),
        on_bytes,
    )


def read_document(blob: BinaryIO, descriptor: Descriptor, bytes_max: int) -> bytes:
    """Return all of `blob`, verified; closes it.

    Raises:
        DigestMismatch: it is not what `descriptor` promises.
        ImageTooLarge: `descriptor` promises more than `bytes_max`.
    """
    with blob:
        if descriptor.size_bytes > bytes_max:
            raise ImageTooLarge(
                f"The document {descriptor.digest} has {descriptor.size_bytes} bytes, more than {bytes_max}"
            )
        reader = open_verified(blob, descriptor, lambda _: None)
        content = reader.readall()
        reader.verify()
        return content or b""


class _Decompressed:
    """A decompressor whose every complaint is `LayerCorrupt`."""

    def __init__(self, inner: Readable) -> None:
        self._inner = inner

    def read(self, size: int, /) -> bytes:
        try:
            return self._inner.read(size)
        except (EOFError, gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
            raise LayerCorrupt(f"A compressed stream is damaged: {error}") from error


def open_decompressed(stream: Peekable) -> Readable:
    """Return the plain bytes of a gzip, zstd or uncompressed stream; its first bytes tell which."""
    magic = stream.peek(4)[:4]
    if magic.startswith(_GZIP_MAGIC):
        return _Decompressed(gzip.GzipFile(fileobj=cast("BinaryIO", stream), mode="rb"))
    if magic == _ZSTD_MAGIC or (magic[1:] == _ZSTD_SKIPPABLE_MAGIC and magic[0] & 0xF0 == 0x50):
        options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX}
        return _Decompressed(zstd.ZstdFile(cast("BinaryIO", stream), mode="rb", options=options))
    return stream


def is_compressed(magic: bytes) -> bool:
    """Tell whether a file that begins with the four bytes `magic` is gzip or zstd."""
    return magic.startswith(_GZIP_MAGIC) or magic[:4] == _ZSTD_MAGIC
