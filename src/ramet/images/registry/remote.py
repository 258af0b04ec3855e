"""An image in a registry, as a source: documents in memory, layers in the cache.

`select` walks from index to config without knowing about networks. What it misses it says by exception,
and is asked again once that is here; each round brings one document, so it ends.
"""

import hashlib
import io
from collections.abc import Sequence
from types import MappingProxyType
from typing import BinaryIO, Final

from ramet.core.errors import RametError
from ramet.images.documents import INDEX_TYPES, MANIFEST_TYPES, Descriptor, Platform, parse_object, string
from ramet.images.errors import (
    BlobMissing,
    DigestMismatch,
    ImageTooLarge,
    InvalidManifest,
    NotInRegistry,
    UnsupportedMediaType,
)
from ramet.images.limits import ImageLimits
from ramet.images.offload import run_stoppable
from ramet.images.reference import Digest, Reference
from ramet.images.registry.cache import BlobCache
from ramet.images.registry.client import Document, Repository
from ramet.images.source import Candidate, Selection, select

DOCUMENT_COUNT_MAX: Final = 64  # Of one image: index, manifests of unknown platforms, and their configs.

_TYPES: Final = INDEX_TYPES | MANIFEST_TYPES


class DocumentAbsent(BlobMissing):
    """A document must be fetched first; or, while layers are unpacked, one was taken away."""

    def __init__(self, descriptor: Descriptor) -> None:
        super().__init__(f"The blob {descriptor.digest} has not been downloaded")
        self.descriptor = descriptor


class RemoteImage:
    """One image of a registry; a `Source` once `resolve` has returned.

    Args:
        repositories: where it may be, in this order.
        cache: where its layers will be.
    """

    def __init__(
        self,
        reference: Reference,
        repositories: Sequence[Repository],
        cache: BlobCache,
        limits: ImageLimits,
    ) -> None:
        self.reference = reference
        self.repositories = tuple(repositories)
        self._cache = cache
        self._limits = limits
        self._documents: dict[Digest, bytes] = {}
        self._root: Descriptor | None = None

    async def resolve(self, platform: Platform) -> Selection:
        """Return what the registry has under this name now.

        Raises:
            NotInRegistry, RegistryDenied, RegistryBusy, RegistryUnreachable, RegistryStalled,
            RegistryAnswerInvalid: of the registry.
            NoMatchingPlatform, DigestMismatch, InvalidManifest, UnsupportedMediaType, ImageTooLarge,
            BlobMissing: of the image.
        """
        for repository in self.repositories[:-1]:
            try:
                return await self._resolve(repository, platform)
            except RametError as error:
                repository.log_passed_over(error)
                self._documents.clear()
        return await self._resolve(self.repositories[-1], platform)

    def candidates(self) -> tuple[Candidate, ...]:
        assert self._root is not None
        return (Candidate((self.reference.name,), (self._root,)),)

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        content = self._documents.get(descriptor.digest)
        if content is not None:
            return io.BytesIO(content)
        try:
            return self._cache.path(descriptor.digest).open("rb")
        except FileNotFoundError as error:
            raise DocumentAbsent(descriptor) from error

    async def _resolve(self, repository: Repository, platform: Platform) -> Selection:
        self._root = await self._fetch_root(repository)
        for _ in range(DOCUMENT_COUNT_MAX):
            try:
                return await run_stoppable(lambda _: select(self, self.reference, platform, self._limits))
            except DocumentAbsent as absent:
                await self._fetch(repository, absent.descriptor)
        raise ImageTooLarge(f"The image consists of more than {DOCUMENT_COUNT_MAX} documents")

    async def _fetch_root(self, repository: Repository) -> Descriptor:
        wanted = self.reference.digest
        assert wanted is not None or self.reference.tag is not None
        document = await repository.manifest(
            wanted or str(self.reference.tag), self._limits.document_bytes_max
        )
        algorithm = wanted.partition(":")[0] if wanted else "sha256"
        digest = Digest(f"{algorithm}:{hashlib.new(algorithm, document.content).hexdigest()}")
        promised = wanted or document.headers.get("docker-content-digest", "")
        if promised.startswith(f"{algorithm}:") and promised != digest:
            raise DigestMismatch(
                f"{repository} sent a manifest with the digest {digest} for {promised[:200]}",
                expected=promised[:200],
                found=digest,
            )
        self._documents[digest] = document.content
        return Descriptor(_media_type(document), digest, len(document.content), MappingProxyType({}))

    async def _fetch(self, repository: Repository, descriptor: Descriptor) -> None:
        if descriptor.size_bytes > self._limits.document_bytes_max:
            raise ImageTooLarge(
                f"The document {descriptor.digest} has {descriptor.size_bytes} bytes, more than"
                f" {self._limits.document_bytes_max}"
            )
        fetch = repository.manifest if descriptor.media_type in _TYPES else repository.blob
        try:
            document = await fetch(descriptor.digest, self._limits.document_bytes_max)
        except NotInRegistry as error:
            raise BlobMissing(
                f"{repository} does not have {descriptor.digest}, which its image names"
            ) from error
        self._documents[descriptor.digest] = document.content


def _media_type(document: Document) -> str:
    """Return what a manifest is: as the header says, or where that says too little, as it says itself."""
    header = document.headers.get("content-type", "").partition(";")[0].strip().lower()
    if header in _TYPES:
        return str(header)
    try:
        own = string(parse_object(document.content, "manifest").get("mediaType"), "mediaType")
    except InvalidManifest as error:
        raise InvalidManifest(
            f"The registry answered with {header[:100]!r} and not with a manifest"
        ) from error
    if own in _TYPES:
        return own
    raise UnsupportedMediaType(
        f"{(own or header)[:100]!r} is not a manifest we can read", media_type=(own or header)[:100]
    )
