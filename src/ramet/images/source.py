"""Where blobs come from, kept apart from what they become.

A source offers images by name and opens blobs by digest; it is never trusted, since all that is read from
it is verified here. A layout folder, an archive and a registry's downloads are sources.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol

from ramet.images.blobs import read_document
from ramet.images.config import ConfigDocument, parse_config
from ramet.images.documents import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Manifest,
    Platform,
    parse_index,
    parse_manifest,
)
from ramet.images.errors import (
    AmbiguousImage,
    DigestMismatch,
    ImageTooLarge,
    InvalidManifest,
    InvalidReference,
    NoMatchingPlatform,
    NotAnImage,
    UnsupportedMediaType,
)
from ramet.images.limits import ImageLimits
from ramet.images.reference import Digest, Reference, parse_reference

INDEX_DEPTH_MAX: Final = 4
INDEX_ENTRY_COUNT_MAX: Final = 4096

ANNOTATION_REF_NAME: Final = "org.opencontainers.image.ref.name"
ANNOTATION_IMAGE_NAME: Final = "io.containerd.image.name"
_ATTESTATION: Final = "unknown/unknown"  # What buildkit calls the platform of its notes on an image.


@dataclass(frozen=True, slots=True)
class Candidate:
    """One image a source offers, perhaps for several platforms.

    Attributes:
        names: full names (`Reference.name`); may be empty.
        descriptors: its manifests and indexes.
    """

    names: tuple[str, ...]
    descriptors: tuple[Descriptor, ...]


class Source(Protocol):
    """A place that holds images. All methods block and may raise any `RametError`."""

    def candidates(self) -> tuple[Candidate, ...]:
        """Return what is offered."""
        ...

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        """Open a blob, unverified; the caller closes it.

        Raises:
            BlobMissing: it is not here.
        """
        ...


@dataclass(frozen=True, slots=True)
class Selection:
    """The one manifest to unpack, verified.

    Attributes:
        digest: the manifest's; the image's identity.
        names: what the source calls it, as `Candidate.names`.
        indexes: digests of the indexes it was found through, outermost first.
    """

    digest: Digest
    names: tuple[str, ...]
    manifest: Manifest
    document: ConfigDocument
    indexes: tuple[Digest, ...] = ()


def select(source: Source, wanted: Reference | None, platform: Platform, limits: ImageLimits) -> Selection:
    """Return the image of `source` for `platform` that `wanted` names, or its only one.

    Raises:
        AmbiguousImage: there are several and `wanted` is none of them.
        NoMatchingPlatform: there is none for `platform`.
        DigestMismatch: a document is not what was promised, or not what `wanted` pins.
        InvalidManifest, UnsupportedMediaType, ImageTooLarge, BlobMissing: see there.
    """
    candidate = _candidate(source.candidates(), wanted)
    selected = _Search(source, platform, limits).find(candidate.descriptors, ())
    if wanted is not None and wanted.digest is not None and wanted.digest not in selected.chain:
        raise DigestMismatch(
            f"The image has the digest {selected.chain[-1]} and not {wanted.digest}",
            expected=wanted.digest,
            found=selected.chain[-1],
        )
    if len(selected.manifest.layers) != len(selected.document.diff_ids):
        raise InvalidManifest("The manifest and the config differ in the number of layers")
    if len(selected.manifest.layers) > limits.layer_count_max:
        raise ImageTooLarge(
            f"The image has {len(selected.manifest.layers)} layers, more than {limits.layer_count_max}"
        )
    *indexes, digest = selected.chain
    return Selection(digest, candidate.names, selected.manifest, selected.document, tuple(indexes))


def group_by_name(descriptors: Iterable[Descriptor], stem: str) -> tuple[Candidate, ...]:
    """Return the images that the entries of a layout's index.json are.

    Args:
        descriptors: those entries; equal names are one image for several platforms.
        stem: name of the file or folder, for entries that tell only a tag.

    Raises:
        ImageTooLarge: there are too many.
    """
    groups: dict[str, list[Descriptor]] = {}
    for count, descriptor in enumerate(descriptors, start=1):
        if count > INDEX_ENTRY_COUNT_MAX:
            raise ImageTooLarge(f"The index has more than {INDEX_ENTRY_COUNT_MAX} entries")
        groups.setdefault(_annotated_name(descriptor, stem), []).append(descriptor)
    return tuple(Candidate((name,) if name else (), tuple(group)) for name, group in groups.items())


def _annotated_name(descriptor: Descriptor, stem: str) -> str:
    short = descriptor.annotations.get(ANNOTATION_REF_NAME, "")
    for text in (descriptor.annotations.get(ANNOTATION_IMAGE_NAME, ""), short):
        # A builder that knows the full name writes only the tag here, which would pass for a name too.
        is_tag = text == "latest" or text[:1].isdigit() or (text[:1] == "v" and text[1:2].isdigit())
        if text and (not is_tag or ":" in text or "/" in text):
            try:
                return parse_reference(text).name
            except InvalidReference:
                continue  # The specification allows names that are no references.
    if short:
        try:
            return parse_reference(f"{stem}:{short}").name
        except InvalidReference:
            return ""
    return ""


def _candidate(candidates: tuple[Candidate, ...], wanted: Reference | None) -> Candidate:
    if not candidates:
        raise NotAnImage("There is no image inside")
    if wanted is not None:
        for candidate in candidates:
            if wanted.name in candidate.names:
                return candidate
    if len(candidates) > 1:
        names = sorted(name for candidate in candidates for name in candidate.names)
        raise AmbiguousImage(
            f"There are {len(candidates)} images inside",
            remedy=f"say which one with --name: {', '.join(names[:10])}" if names else "",
            names=names,
        )
    return candidates[0]


@dataclass(frozen=True, slots=True)
class _Found:
    chain: tuple[Digest, ...]
    manifest: Manifest
    document: ConfigDocument


class _Search:
    """Walks indexes down to the manifest for one platform."""

    def __init__(self, source: Source, platform: Platform, limits: ImageLimits) -> None:
        self._source = source
        self._platform = platform
        self._limits = limits
        self._seen: set[str] = set()
        self._foreign: set[str] = set()

    def find(self, descriptors: tuple[Descriptor, ...], chain: tuple[Digest, ...]) -> _Found:
        found = self._find(descriptors, chain)
        if found is not None:
            return found
        if self._seen:
            seen = sorted(self._seen - {_ATTESTATION}) or [_ATTESTATION]
            raise NoMatchingPlatform(
                f"The image is for {', '.join(seen)} and not for {self._platform}",
                remedy="choose another tag, or an image that is built for this platform",
                wanted=str(self._platform),
                found=seen,
            )
        kinds = sorted(self._foreign)
        raise UnsupportedMediaType(f"There is no image manifest, only {kinds}", media_types=kinds)

    def _find(self, descriptors: tuple[Descriptor, ...], chain: tuple[Digest, ...]) -> _Found | None:
        if len(chain) > INDEX_DEPTH_MAX:
            raise InvalidManifest(f"Indexes are nested more than {INDEX_DEPTH_MAX} deep")
        if len(descriptors) > INDEX_ENTRY_COUNT_MAX:
            raise ImageTooLarge(f"An index has more than {INDEX_ENTRY_COUNT_MAX} entries")
        # Entries that say they are for us come first; those that say nothing must be opened to know.
        told = [item for item in descriptors if item.platform is not None]
        for descriptor in told:
            assert descriptor.platform is not None
            if not self._platform.accepts(descriptor.platform):
                self._seen.add(str(descriptor.platform))
        ours = [item for item in told if item.platform is not None and self._platform.accepts(item.platform)]
        ours.sort(key=lambda item: item.platform != self._platform)  # The very variant before a near one.
        for descriptor in (*ours, *(item for item in descriptors if item.platform is None)):
            found = self._open(descriptor, (*chain, descriptor.digest))
            if found is not None:
                return found
        return None

    def _open(self, descriptor: Descriptor, chain: tuple[Digest, ...]) -> _Found | None:
        if descriptor.media_type in INDEX_TYPES:
            return self._find(parse_index(self._read(descriptor)), chain)
        if descriptor.media_type not in MANIFEST_TYPES:
            self._foreign.add(descriptor.media_type)
            return None
        manifest = parse_manifest(self._read(descriptor))
        document = parse_config(self._read(manifest.config))
        if not self._platform.accepts(document.config.platform):
            self._seen.add(str(document.config.platform))
            return None
        return _Found(chain, manifest, document)

    def _read(self, descriptor: Descriptor) -> bytes:
        return read_document(self._source.open_blob(descriptor), descriptor, self._limits.document_bytes_max)
