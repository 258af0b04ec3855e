"""One layer from a registry into the cache, however often the connection breaks.

Progress is what earns another attempt: a registry that cuts off after each megabyte is followed to the
end, one that sends nothing new a few times in a row is given up.
"""

import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import anyio
import httpx

from ramet.core.errors import RametError
from ramet.images.documents import Descriptor
from ramet.images.errors import (
    BlobMissing,
    ConversionFailed,
    DigestMismatch,
    NotInRegistry,
    RegistryAnswerInvalid,
    StorageFull,
)
from ramet.images.registry.cache import BlobCache, Part
from ramet.images.registry.client import BodyCut, Repository

PIECE_BYTES: Final = 1 << 20
PROGRESS_BYTES_MIN: Final = 64 << 10  # Less than this is no progress: a trickle of cuts must end, too.
REQUEST_COUNT_MAX: Final = 1000  # For one blob.

_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-[0-9]{1,18}/(?:[0-9]{1,18}|\*)")
_RANGE_NOT_SATISFIABLE: Final = 416


async def download(
    repositories: Sequence[Repository],
    descriptor: Descriptor,
    cache: BlobCache,
    on_bytes: Callable[[int], None],
) -> None:
    """Have the blob in `cache`, which holds it.

    Args:
        repositories: where it may be, in this order.
        on_bytes: called with how many bytes are there now.

    Raises:
        BlobMissing: no repository has it.
        DigestMismatch: what they send is something else.
        RegistryDenied, RegistryBusy, RegistryUnreachable, RegistryStalled, RegistryAnswerInvalid,
        StorageFull, ConversionFailed: see there.
    """
    async with cache.alone(descriptor.digest):
        if await cache.has(descriptor):
            on_bytes(descriptor.size_bytes)
            return
        part = await cache.open_part(descriptor)
        try:
            for repository in repositories[:-1]:
                try:
                    await _Transfer(repository, descriptor, part, on_bytes).run()
                    return
                except (StorageFull, ConversionFailed):
                    raise
                except RametError as error:
                    repository.log_passed_over(error)
            await _Transfer(repositories[-1], descriptor, part, on_bytes).run()
        finally:
            part.close()


class _Transfer:
    """All requests to one repository for one blob."""

    def __init__(
        self, repository: Repository, descriptor: Descriptor, part: Part, on_bytes: Callable[[int], None]
    ) -> None:
        self._repository = repository
        self._descriptor = descriptor
        self._part = part
        self._on_bytes = on_bytes
        self._may_range = True

    async def run(self) -> None:
        had_bytes = self._part.size_bytes
        try:
            await self._fill()
            await self._part.finish()
        except DigestMismatch:
            if not had_bytes:
                raise
            # What lay here before may have been the wrong half.
            self._part.restart()
            await self._fill()
            await self._part.finish()

    async def _fill(self) -> None:
        """Ask for what is missing until nothing is."""
        config = self._repository.config
        failure_count = 0
        for _ in range(REQUEST_COUNT_MAX):
            self._on_bytes(self._part.size_bytes)
            if self._part.size_bytes == self._descriptor.size_bytes:
                return
            before_bytes = self._part.size_bytes
            try:
                await self._request()
                reason = "a layer ends before its length"
            except (BodyCut, TimeoutError) as error:
                reason = str(error)
                is_stalled = isinstance(error, TimeoutError)
            except NotInRegistry as error:
                raise BlobMissing(
                    f"{self._repository} has a manifest, but not its layer {self._descriptor.digest}"
                ) from error
            else:
                is_stalled = False
            if self._part.size_bytes - before_bytes >= PROGRESS_BYTES_MIN:
                failure_count = 0
            if self._part.size_bytes == self._descriptor.size_bytes:
                continue
            failure_count += 1
            if failure_count >= config.attempt_count_max:
                raise self._repository.stalled() if is_stalled else self._repository.broken(reason)
            await self._repository.wait_before(failure_count)
        raise self._repository.broken(f"a layer takes more than {REQUEST_COUNT_MAX} requests")

    async def _request(self) -> None:
        offset = self._part.size_bytes if self._may_range else 0
        async with self._repository.stream(self._descriptor.digest, offset) as response:
            if offset and not self._continues(response, offset):
                # Asked for a part and told something else: from now on we take it whole.
                self._may_range = False
                if response.status_code != 200:
                    raise BodyCut("it cannot send a part of a layer")
                offset = 0
            if not offset:
                self._part.restart()
            if response.status_code != 200 and not offset:
                raise RegistryAnswerInvalid(
                    f"{self._repository} answered a request for a layer with {response.status_code}"
                )
            pieces = response.aiter_raw()
            while piece := await self._next(pieces):
                await self._part.add(piece)
                self._on_bytes(self._part.size_bytes)

    def _continues(self, response: httpx.Response, offset: int) -> bool:
        found = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        return response.status_code == 206 and found is not None and int(found[1]) == offset

    async def _next(self, pieces: AsyncIterator[bytes]) -> bytes:
        """Return the next bytes, empty at the end; a stall keeps those that came."""
        config = self._repository.config
        gathered = bytearray()
        while len(gathered) < PIECE_BYTES:
            target = len(gathered) + config.stall_bytes
            try:
                with anyio.fail_after(config.stall_timeout_s):
                    while len(gathered) < target:
                        piece = await anext(pieces, None)
                        if piece is None:
                            return bytes(gathered)
                        gathered += piece
            except (TimeoutError, httpx.HTTPError):
                if gathered:
                    await self._part.add(bytes(gathered))
                raise
        return bytes(gathered)
