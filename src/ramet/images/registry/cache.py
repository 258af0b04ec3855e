"""Downloaded layers on disk, whole and half, by digest.

    blobs/sha256-<hex>          whole; its digest was right when it was finished
    blobs/sha256-<hex>.part     the beginning of one

Nothing here is trusted for where it lies: a half file is hashed again before it is continued, and a whole
one before its first use by a process. So a crash, or a hand on the folder, costs a download and no more.
What no pull uses is bounded: the longest unused goes first.
"""

import hashlib
import os
import stat
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import anyio
from anyio import to_thread

from ramet.images.blobs import CHUNK_BYTES
from ramet.images.documents import Descriptor
from ramet.images.errors import DigestMismatch, StorageFull, storage_error
from ramet.images.offload import run_stoppable
from ramet.images.quota import StorageQuota
from ramet.images.reference import Digest

PART: Final = ".part"
CHECK_STEP_BYTES: Final = 16 << 20  # Written between two looks at the room that is left.


class BlobCache:
    """The blobs in one folder. All calls from one event loop.

    Args:
        folder: made if it is missing.
        bytes_max: of what no pull uses.
        free_bytes_min: of the disk, which are left alone.
        quota: that of the images, of which blobs take a part.
    """

    def __init__(
        self, folder: Path, bytes_max: int, free_bytes_min: int, quota: StorageQuota | None = None
    ) -> None:
        self._folder = folder
        self._bytes_max = bytes_max
        self._free_bytes_min = free_bytes_min
        self._quota = quota or StorageQuota(None, lambda: 0)
        self._promised: list[Mapping[Digest, Descriptor]] = []
        self._held: dict[Digest, int] = {}
        self._locks: dict[Digest, anyio.Lock] = {}
        self._verified: set[Digest] = set()

    def open(self) -> None:
        """Make the folder. Blocks."""
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def path(self, digest: Digest) -> Path:
        """Return where a whole blob lies."""
        return self._folder / digest.replace(":", "-")

    @asynccontextmanager
    async def holding(self, digests: Iterable[Digest]) -> AsyncIterator[None]:
        """Keep these blobs, whole or half, while inside; afterwards the bound holds again."""
        held = set(digests)
        for digest in held:
            self._held[digest] = self._held.get(digest, 0) + 1
        try:
            yield
        finally:
            for digest in held:
                self._held[digest] -= 1
                if not self._held[digest]:
                    del self._held[digest]
                    self._locks.pop(digest, None)
            self._trim_beside(self._taken_bytes())

    @asynccontextmanager
    async def alone(self, digest: Digest) -> AsyncIterator[None]:
        """Nobody else writes this blob meanwhile; it is held."""
        assert digest in self._held
        async with self._locks.setdefault(digest, anyio.Lock()):
            yield

    async def has(self, descriptor: Descriptor) -> bool:
        """Tell whether the blob is here, whole and right; one that is not goes away.

        Raises:
            ConversionFailed: it cannot be read.
        """
        path = self.path(descriptor.digest)
        try:
            if not path.exists():
                return False
            if descriptor.digest not in self._verified:
                with path.open("rb") as file:
                    hashed = await hash_file(file, descriptor)
                if hashed.hexdigest() != descriptor.digest.partition(":")[2]:
                    path.unlink()
                    return False
                self._verified.add(descriptor.digest)
            os.utime(path)  # Its age is the time of its last use.
        except OSError as error:
            raise storage_error(error) from error
        return True

    async def open_part(self, descriptor: Descriptor) -> "Part":
        """Open the beginning of a blob, perhaps of no bytes, to add to it; the caller closes it.

        Raises:
            StorageFull, ConversionFailed: the file cannot be made or read.
        """
        path = self.path(descriptor.digest)
        try:
            part = Part(self, _part_of(path), descriptor)
            try:
                await part.reread()
            except BaseException:
                part.close()
                raise
        except OSError as error:
            raise storage_error(error) from error
        return part

    def require(self, size_bytes: int) -> None:
        """Make sure that `size_bytes` more leave the disk its reserve, by letting go of unused blobs.

        Raises:
            StorageFull: they do not.
        """
        if self._spare_bytes() < size_bytes:
            self.trim(0)
        if self._spare_bytes() < size_bytes:
            raise StorageFull(
                f"The disk of the images has too little room: {size_bytes} more bytes would leave less than"
                f" the {self._free_bytes_min} kept free",
                remedy="remove images with: ramet image rm NAME, or make room otherwise",
                needed_bytes=size_bytes,
            )

    @contextmanager
    def room_for(self, layers: Mapping[Digest, Descriptor]) -> Iterator[None]:
        """Keep room for layers, which are held, while they are downloaded inside; unused blobs make way.

        Raises:
            StorageFull: the disk has not enough.
            ImageQuotaReached: images and layers may not take as much.
        """
        self.require(self.missing_bytes(layers.values()))
        self._promised.append(layers)
        try:
            self.make_room(0)
            yield
        finally:
            self._promised.remove(layers)

    def make_room(self, image_bytes: int, made_of: Collection[Digest] = ()) -> None:
        """Make sure that an image fits into the quota, by letting go of unused blobs.

        The blobs it was `made_of` are held by its pull, and need no room once there is the image.

        Raises:
            ImageQuotaReached: it does not.
        """
        needed_bytes = image_bytes + self._taken_bytes(made_of)
        self._quota.demand(needed_bytes)
        self._trim_beside(needed_bytes)

    def trim(self, bytes_max: int) -> None:
        """Let go of the longest unused blobs until the rest of the unused has at most `bytes_max` bytes.

        Raises:
            ConversionFailed: one cannot be removed.
        """
        idle = self._idle()
        total_bytes = sum(size_bytes for _, size_bytes, _ in idle)
        for _, size_bytes, path in sorted(idle):
            if total_bytes <= bytes_max:
                break
            _remove(path)
            total_bytes -= size_bytes

    def collect(self, before_s: float) -> int:
        """Let go of the blobs that were last used before then, in Unix seconds, and return how many.

        Raises:
            ConversionFailed: one cannot be removed.
        """
        old = [path for used_at, _, path in self._idle() if used_at < before_s]
        for path in old:
            _remove(path)
        return len(old)

    def take(self, path: Path, digest: Digest) -> None:
        """Make the half file `path`, which is whole and right, the blob."""
        path.rename(self.path(digest))
        self._verified.add(digest)

    def doubt(self, digests: Iterable[Digest]) -> None:
        """Hash these blobs again before their next use."""
        self._verified.difference_update(digests)

    def missing_bytes(self, descriptors: Iterable[Descriptor]) -> int:
        """Return how many bytes of these blobs are not here."""
        total_bytes = 0
        for descriptor in descriptors:
            path = self.path(descriptor.digest)
            found = [other.stat().st_size for other in (path, _part_of(path)) if other.exists()]
            total_bytes += max(0, descriptor.size_bytes - max(found, default=0))
        return total_bytes

    def _idle(self) -> list[tuple[float, int, Path]]:
        """Return the blobs that no pull uses, whole or half: last use (Unix seconds), bytes, place."""
        held = {self.path(digest).name for digest in self._held}
        idle = []
        for path in self._folder.iterdir():
            found = path.lstat()
            if path.name.removesuffix(PART) not in held and stat.S_ISREG(found.st_mode):
                idle.append((found.st_mtime, found.st_size, path))
        return idle

    def _taken_bytes(self, made_of: Collection[Digest] = ()) -> int:
        """Return what the blobs in use take, or will; without those that only the pull of one image holds."""
        sizes = {digest: layer.size_bytes for layers in self._promised for digest, layer in layers.items()}
        for digest in self._held.keys() - sizes.keys():
            path = self.path(digest)
            sizes[digest] = sum(found.stat().st_size for found in (path, _part_of(path)) if found.exists())
        own = {digest for digest in made_of if self._held.get(digest) == 1}
        return sum(size_bytes for digest, size_bytes in sizes.items() if digest not in own)

    def _trim_beside(self, needed_bytes: int) -> None:
        """Let go of unused blobs until their bound holds, and the quota beside so many bytes."""
        left_bytes = self._quota.left_bytes()
        bound = self._bytes_max if left_bytes is None else max(0, left_bytes - needed_bytes)
        self.trim(min(self._bytes_max, bound))

    def _spare_bytes(self) -> int:
        found = os.statvfs(self._folder)
        return found.f_bavail * found.f_frsize - self._free_bytes_min


class Part:
    """The beginning of a blob: `size_bytes` of it so far."""

    def __init__(self, cache: BlobCache, path: Path, descriptor: Descriptor) -> None:
        self.size_bytes = 0
        self._cache = cache
        self._path = path
        self._descriptor = descriptor
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._hash = _new_hash(descriptor)
        self._unchecked_bytes = 0

    def close(self) -> None:
        self._file.close()

    async def reread(self) -> None:
        """Hash what was there before; a file longer than the blob begins anew."""
        self.size_bytes = os.fstat(self._file.fileno()).st_size
        if self.size_bytes > self._descriptor.size_bytes:
            self.restart()
        self._hash = await hash_file(self._file, self._descriptor)
        os.utime(self._path)

    def restart(self) -> None:
        """Forget all bytes so far."""
        self._file.seek(0)
        self._file.truncate()
        self.size_bytes = 0
        self._hash = _new_hash(self._descriptor)

    async def add(self, data: bytes) -> None:
        """Write what comes next.

        Raises:
            DigestMismatch: the blob would be longer than promised.
            StorageFull, ConversionFailed: it cannot be written.
        """
        if self.size_bytes + len(data) > self._descriptor.size_bytes:
            raise DigestMismatch(
                f"The blob {self._descriptor.digest} is longer than the {self._descriptor.size_bytes} bytes"
                " promised",
                expected=self._descriptor.digest,
            )
        self._unchecked_bytes += len(data)
        if self._unchecked_bytes >= CHECK_STEP_BYTES:
            self._unchecked_bytes = 0
            self._cache.require(len(data))

        def write() -> None:
            self._file.write(data)
            self._hash.update(data)

        try:
            # In a thread: a megabyte is half a millisecond of hashing, which no guest should wait for.
            await to_thread.run_sync(write)
        except OSError as error:
            raise storage_error(error) from error
        self.size_bytes += len(data)

    async def finish(self) -> None:
        """Make it the blob, which it now is; a wrong one loses its bytes.

        Raises:
            DigestMismatch: it is another than promised.
            StorageFull, ConversionFailed: it cannot be written.
        """
        found = f"{self._descriptor.digest.partition(':')[0]}:{self._hash.hexdigest()}"
        if found != self._descriptor.digest:
            self.restart()
            raise DigestMismatch(
                f"A blob has the digest {found} and should have {self._descriptor.digest}",
                expected=self._descriptor.digest,
                found=found,
            )

        def sync() -> None:
            self._file.flush()
            os.fsync(self._file.fileno())

        try:
            await to_thread.run_sync(sync)
            self._cache.take(self._path, self._descriptor.digest)
        except OSError as error:
            raise storage_error(error) from error


async def hash_file(file: BinaryIO, descriptor: Descriptor) -> "hashlib._Hash":
    """Return the hash of all that `file` holds, with the descriptor's algorithm."""
    hashed = _new_hash(descriptor)

    def read(check: Callable[[], None]) -> None:
        file.seek(0)
        while piece := file.read(CHUNK_BYTES):
            check()
            hashed.update(piece)

    await run_stoppable(read)
    return hashed


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        raise storage_error(error) from error


def _new_hash(descriptor: Descriptor) -> "hashlib._Hash":
    return hashlib.new(descriptor.digest.partition(":")[0])


def _part_of(path: Path) -> Path:
    return path.with_name(path.name + PART)
