"""What the catalog writes down: image.json beside each root disk, and one file of tags.

An image exists when its image.json does; a tag is only a name for one, and without its image it is nothing.
"""

import json
import os
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from ramet.images.config import ImageConfig, config_from_json, config_to_json
from ramet.images.documents import Platform, as_object, digest, parse_object, string, string_map
from ramet.images.errors import CatalogCorrupt, InvalidManifest
from ramet.images.reference import Digest

SCHEMA: Final = 1


@dataclass(frozen=True, slots=True)
class Image:
    """One image that VMs can boot from.

    Attributes:
        name: full reference it was asked for by; its digest where it has no tag.
        digest: of its manifest.
        size_bytes: of the root disk.
        rootfs: the root disk: a read-only EROFS image, the same file for all VMs.
        created_at: when it was first imported; with a time zone.
        tags: all full references that name it, sorted.
        labels: a user's key-value pairs, by the name they were given to.
    """

    name: str
    digest: Digest
    size_bytes: int
    config: ImageConfig
    platform: Platform
    created_at: datetime
    rootfs: Path
    tags: tuple[str, ...]
    labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Content:
    """What image.json holds; like `Image`, without names.

    Attributes:
        layers: digests of the blobs it was made of, lowest first.
    """

    digest: Digest
    size_bytes: int
    config: ImageConfig
    created_at: datetime
    layers: tuple[Digest, ...]


def content_to_bytes(content: Content) -> bytes:
    """Return image.json."""
    value = {
        "schema": SCHEMA,
        "digest": content.digest,
        "size_bytes": content.size_bytes,
        "created_at": content.created_at.isoformat(),
        "layers": list(content.layers),
        "config": config_to_json(content.config),
    }
    return json.dumps(value, indent=1, sort_keys=True).encode() + b"\n"


def load_content(file: Path) -> Content:
    """Return what the image.json `file` holds.

    Raises:
        CatalogCorrupt: it is not what we wrote.
    """
    try:
        value = parse_object(file.read_bytes(), "image.json")
        size_bytes = value.get("size_bytes")
        layers = value.get("layers")
        if value.get("schema") != SCHEMA or not isinstance(size_bytes, int) or not isinstance(layers, list):
            raise InvalidManifest(f"image.json is of another schema than {SCHEMA}")
        return Content(
            digest=digest(value.get("digest"), "digest"),
            size_bytes=size_bytes,
            config=config_from_json(as_object(value.get("config"), "config")),
            created_at=datetime.fromisoformat(string(value.get("created_at"), "created_at")),
            layers=tuple(digest(item, "layer") for item in layers),
        )
    except (InvalidManifest, ValueError) as error:
        raise CatalogCorrupt(f"{file} cannot be read: {error}", remedy=f"remove {file.parent}") from error


@dataclass(frozen=True, slots=True)
class Names:
    """What tags.json holds.

    Attributes:
        tags: images by full reference.
        pins: images by digest of an index that they were found through.
        labels: a user's key-value pairs, by full reference.
    """

    tags: dict[str, Digest] = field(default_factory=dict)
    pins: dict[Digest, Digest] = field(default_factory=dict)
    labels: dict[str, Mapping[str, str]] = field(default_factory=dict)

    def of(self, contents: Container[Digest]) -> "Names":
        """Return what of it names one of `contents`."""
        tags = {name: found for name, found in self.tags.items() if found in contents}
        pins = {index: found for index, found in self.pins.items() if found in contents}
        return Names(tags, pins, {name: pairs for name, pairs in self.labels.items() if name in tags})


def load_names(file: Path) -> Names:
    """Return the names in `file`; none where it does not exist yet.

    Raises:
        CatalogCorrupt: it is not what we wrote.
    """
    try:
        value = parse_object(file.read_bytes(), "file of tags")
        if value.get("schema") != SCHEMA:
            raise InvalidManifest(f"tags.json is of another schema than {SCHEMA}")
        labels = as_object(value.get("labels") or {}, "labels")
        pins = string_map(value.get("pins"), "pins")
        return Names(
            {name: digest(found, "tag") for name, found in string_map(value.get("tags"), "tags").items()},
            {digest(index, "pin"): digest(found, "pin") for index, found in pins.items()},
            {name: string_map(pairs, "labels") for name, pairs in labels.items()},
        )
    except FileNotFoundError:
        return Names()
    except InvalidManifest as error:
        raise CatalogCorrupt(
            f"{file} cannot be read: {error}", remedy=f"remove {file} and tag the images anew"
        ) from error


def save_names(file: Path, names: Names, scratch: Path) -> None:
    """Replace `file`, whole; `scratch` is a name on the same file system that does not exist yet."""
    value = {
        "schema": SCHEMA,
        "tags": names.tags,
        "pins": names.pins,
        "labels": {name: dict(pairs) for name, pairs in names.labels.items()},
    }
    write_synced(scratch, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")
    scratch.replace(file)
    sync(file.parent)


def write_synced(file: Path, content: bytes) -> None:
    """Write a new file and wait until the disk has it."""
    file.write_bytes(content)
    sync(file)


def sync(path: Path) -> None:
    """Wait until the disk has a file's content, or a folder's names."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
