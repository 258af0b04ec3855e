"""JSON from strangers, read field by field.

An index, a manifest and a config come from whoever built the image. Nothing below this module sees a
value whose type was not checked here.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from ramet.images.errors import InvalidManifest, InvalidPlatform, InvalidReference, UnsupportedMediaType
from ramet.images.reference import Digest, parse_digest

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"

INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIG_TYPES: Final = frozenset({OCI_CONFIG, DOCKER_CONFIG})
# What a layer is compressed with is read from its first bytes; the type only says that it is a layer.
LAYER_TYPES: Final = frozenset(
    {
        OCI_LAYER,
        OCI_LAYER + "+gzip",
        OCI_LAYER + "+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    }
)


def parse_object(content: bytes, what: str) -> dict[str, object]:
    """Return the JSON object that `content` is; `what` names it in the error.

    Raises:
        InvalidManifest: it is not UTF-8, not JSON or not an object.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InvalidManifest(f"The {what} is not JSON") from error
    return as_object(value, what)


def as_object(value: object, what: str) -> dict[str, object]:
    """Return `value` if it is a JSON object."""
    if not isinstance(value, dict):
        raise InvalidManifest(f"The {what} is not a JSON object")
    return value


def objects(value: object, what: str) -> list[dict[str, object]]:
    """Return `value` if it is a list of JSON objects; null is the empty list."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidManifest(f"The {what} is not a list")
    return [as_object(item, what) for item in value]


def string(value: object, what: str) -> str:
    """Return `value` if it is a string; null is the empty string."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidManifest(f"The {what} is not a string")
    return value


def strings(value: object, what: str) -> tuple[str, ...]:
    """Return `value` if it is a list of strings; null is the empty list."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InvalidManifest(f"The {what} is not a list of strings")
    return tuple(value)


def string_map(value: object, what: str) -> Mapping[str, str]:
    """Return `value` if it is an object whose values are strings; null is empty. Read-only."""
    if value is None:
        return MappingProxyType({})
    found = as_object(value, what)
    if not all(isinstance(item, str) for item in found.values()):
        raise InvalidManifest(f"The {what} holds something else than strings")
    return MappingProxyType({key: str(item) for key, item in found.items()})


def digest(value: object, what: str) -> Digest:
    """Return `value` if it is a digest.

    Raises:
        InvalidManifest: it is not.
    """
    try:
        return parse_digest(string(value, what))
    except InvalidReference as error:
        raise InvalidManifest(f"The {what} is not a digest") from error


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on, in Go's words: "linux" and "amd64"."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    def accepts(self, other: "Platform") -> bool:
        """Tell whether an image made for `other` runs here."""
        if (self.os, self.architecture) != (other.os, other.architecture):
            return False
        return not self.variant or not other.variant or self.variant == other.variant


LINUX_AMD64: Final = Platform("linux", "amd64")
_PLATFORM: Final = re.compile(
    r"(linux)/(386|amd64|arm|arm64|loong64|mips64le|ppc64le|riscv64|s390x)(?:/(v[0-9]{1,2}))?"
)


def parse_platform(text: str) -> Platform:
    """Return the platform that `text` is, such as "linux/amd64" or "linux/arm64/v8".

    Raises:
        InvalidPlatform: it is none.
    """
    found = _PLATFORM.fullmatch(text)
    if found is None:
        raise InvalidPlatform(f"{text[:60]!r} is no platform", remedy="write it like linux/amd64")
    return Platform(found[1], found[2], found[3] or "")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Where a document points: the bytes of this digest and size.

    Attributes:
        platform: None where the document does not say.
    """

    media_type: str
    digest: Digest
    size_bytes: int
    annotations: Mapping[str, str]
    platform: Platform | None = None


def parse_descriptor(value: Mapping[str, object]) -> Descriptor:
    """Return the descriptor that the JSON object `value` is.

    Raises:
        InvalidManifest: a field is missing or of the wrong type.
    """
    size_bytes = value.get("size")
    if not isinstance(size_bytes, int) or isinstance(size_bytes, bool) or size_bytes < 0:
        raise InvalidManifest("A descriptor has no size")
    platform = None
    if value.get("platform") is not None:
        found = as_object(value["platform"], "platform")
        platform = Platform(
            string(found.get("os"), "platform.os"),
            string(found.get("architecture"), "platform.architecture"),
            string(found.get("variant"), "platform.variant"),
        )
    return Descriptor(
        media_type=string(value.get("mediaType"), "mediaType"),
        digest=digest(value.get("digest"), "descriptor's digest"),
        size_bytes=size_bytes,
        annotations=string_map(value.get("annotations"), "annotations"),
        platform=platform,
    )


def parse_index(content: bytes) -> tuple[Descriptor, ...]:
    """Return the descriptors of an OCI index or a docker manifest list.

    Raises:
        InvalidManifest: it is neither.
    """
    index = parse_object(content, "index")
    if "layers" in index or "config" in index:
        raise InvalidManifest("A document is an index and a manifest at once")
    return tuple(parse_descriptor(item) for item in objects(index.get("manifests"), "index"))


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image for one platform: its config and its layers, lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


def parse_manifest(content: bytes) -> Manifest:
    """Return the OCI or docker schema 2 manifest that `content` is.

    Raises:
        InvalidManifest: a field is missing or of the wrong type.
        UnsupportedMediaType: it describes something else than an image.
    """
    value = parse_object(content, "manifest")
    if "manifests" in value:
        # Read as the other kind it would be another image with the same digest (CVE-2021-41190).
        raise InvalidManifest("A document is a manifest and an index at once")
    if value.get("schemaVersion") != 2:
        raise UnsupportedMediaType("The manifest is of another schema than 2")
    manifest = Manifest(
        config=parse_descriptor(as_object(value.get("config"), "manifest's config")),
        layers=tuple(parse_descriptor(item) for item in objects(value.get("layers"), "manifest's layers")),
    )
    if manifest.config.media_type not in CONFIG_TYPES:
        raise UnsupportedMediaType(
            f"{manifest.config.media_type!r} is not the config of an image",
            media_type=manifest.config.media_type,
        )
    for layer in manifest.layers:
        if layer.media_type not in LAYER_TYPES:
            raise UnsupportedMediaType(
                f"{layer.media_type!r} is not a layer we can unpack", media_type=layer.media_type
            )
    return manifest
