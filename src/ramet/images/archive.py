"""Images in one tar file: an OCI layout, or what `docker save` writes.

The file is never unpacked: its members are found once, and blobs are read where they lie in it. A
compressed file has no such places, so it is uncompressed into the scratch folder first.

An archive of docker before version 25 has no manifest in OCI's sense, so one is made from its config and
layers, the same for the same content. Its digest is the image's identity.
"""

import hashlib
import io
import json
import posixpath
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final, cast

from ramet.images.blobs import CHUNK_BYTES, is_compressed, open_decompressed
from ramet.images.config import parse_config
from ramet.images.documents import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    objects,
    parse_index,
    string,
    strings,
)
from ramet.images.errors import (
    BlobMissing,
    ImageTooLarge,
    InvalidManifest,
    InvalidReference,
    LayerCorrupt,
    NotAnImage,
    storage_error,
)
from ramet.images.layout import INDEX_FILE, LAYOUT_FILE, blob_path, check_layout_version, open_regular
from ramet.images.limits import ARCHIVE_MEMBER_COUNT_MAX, ImageLimits
from ramet.images.reference import Digest, parse_reference
from ramet.images.source import Candidate, group_by_name
from ramet.images.tarstream import entries

DOCKER_FILE: Final = "manifest.json"
LINK_DEPTH_MAX: Final = 8


@dataclass(frozen=True, slots=True)
class _Member:
    """Bytes of the archive file, or a name for other ones."""

    offset: int = 0
    size_bytes: int = 0
    link: str = ""


class _Section(io.RawIOBase):
    """Some bytes of a file, as a file."""

    def __init__(self, file: BinaryIO, offset: int, size_bytes: int) -> None:
        super().__init__()
        self._file = file
        self._left = size_bytes
        file.seek(offset)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # type: ignore[override]
        piece = self._file.read(min(len(buffer), self._left))
        self._left -= len(piece)
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        self._file.close()
        super().close()


class Archive:
    """The images in a tar file; a `Source`.

    Args:
        path: the file.
        scratch: folder for the uncompressed copy of a compressed archive; the caller removes it.
        check: called now and then; raises to stop.

    Raises:
        NotAnImage: it is not a tar archive, or not one of images.
        ImageTooLarge: it has too many members, or uncompresses to too much.
    """

    def __init__(
        self, path: Path, scratch: Path, limits: ImageLimits, check: Callable[[], None] = lambda: None
    ) -> None:
        self._limits = limits
        self._check = check
        self._stem = path.name.partition(".")[0]
        self._path = path
        with open_regular(path) as file:
            if is_compressed(file.read(4)):
                file.seek(0)
                self._path = scratch / "archive.tar"
                self._uncompress(file)
        try:
            self._members = self._index()
        except LayerCorrupt as error:
            raise NotAnImage(f"{path.name} is not a tar archive we can read: {error.message}") from error
        self._made: dict[Digest, bytes] = {}
        self._layers: dict[Digest, str] = {}
        if LAYOUT_FILE in self._members and INDEX_FILE in self._members:
            check_layout_version(self._read(LAYOUT_FILE))
            self._candidates = self._name_by_docker(parse_index(self._read(INDEX_FILE)))
        elif DOCKER_FILE in self._members:
            self._candidates = tuple(self._from_docker(item) for item in self._docker_list())
        else:
            raise NotAnImage(f"{path.name} is neither an OCI archive nor one of docker save")

    def candidates(self) -> tuple[Candidate, ...]:
        return self._candidates

    def open_blob(self, descriptor: Descriptor) -> BinaryIO:
        if descriptor.digest in self._made:
            return io.BytesIO(self._made[descriptor.digest])
        return self._open(self._layers.get(descriptor.digest, blob_path(descriptor)))

    # The tar file

    def _uncompress(self, file: io.BufferedReader) -> None:
        size_bytes = 0
        with self._path.open("wb") as copy:
            plain = open_decompressed(file)
            while piece := plain.read(CHUNK_BYTES):
                self._check()
                size_bytes += len(piece)
                if size_bytes > self._limits.image_bytes_max:
                    raise ImageTooLarge(
                        f"The archive uncompresses to more than {self._limits.image_bytes_max} bytes"
                    )
                try:
                    copy.write(piece)
                except OSError as error:
                    raise storage_error(error) from error

    def _index(self) -> dict[str, _Member]:
        members: dict[str, _Member] = {}
        with open_regular(self._path) as file:
            for count, entry in enumerate(entries(file, skip=lambda count: file.seek(count, 1)), start=1):
                self._check()
                if count > ARCHIVE_MEMBER_COUNT_MAX:
                    raise ImageTooLarge(f"The archive has more than {ARCHIVE_MEMBER_COUNT_MAX} members")
                info = entry.info
                name = posixpath.normpath("/" + info.name).lstrip("/")
                if info.type == tarfile.SYMTYPE:
                    # docker save before version 25 wrote equal layers once, and links to them.
                    target = posixpath.normpath(posixpath.join("/", posixpath.dirname(name), info.linkname))
                    members[name] = _Member(link=target.lstrip("/"))
                elif info.type == tarfile.LNKTYPE:
                    members[name] = _Member(link=posixpath.normpath("/" + info.linkname).lstrip("/"))
                elif info.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    members[name] = _Member(info.offset_data, info.size)
        return members

    def _find(self, name: str) -> _Member:
        for _ in range(LINK_DEPTH_MAX):
            member = self._members.get(posixpath.normpath("/" + name).lstrip("/"))
            if member is None:
                break
            if not member.link:
                return member
            name = member.link
        raise BlobMissing(f"The archive has no {name[:200]!a}")

    def _open(self, name: str) -> BinaryIO:
        member = self._find(name)
        section = _Section(open_regular(self._path), member.offset, member.size_bytes)
        return cast("BinaryIO", io.BufferedReader(section, CHUNK_BYTES))

    def _read(self, name: str) -> bytes:
        if self._find(name).size_bytes > self._limits.document_bytes_max:
            raise ImageTooLarge(f"{name[:200]!a} has more than {self._limits.document_bytes_max} bytes")
        with self._open(name) as file:
            return file.read()

    # What docker adds to it

    def _docker_list(self) -> list[dict[str, object]]:
        try:
            return objects(json.loads(self._read(DOCKER_FILE)), DOCKER_FILE)
        except (ValueError, RecursionError) as error:
            raise InvalidManifest(f"{DOCKER_FILE} is not JSON") from error

    def _name_by_docker(self, descriptors: tuple[Descriptor, ...]) -> tuple[Candidate, ...]:
        """Group the entries of index.json; docker's own list names a single image that has no name."""
        found = group_by_name(descriptors, self._stem)
        if len(found) != 1 or found[0].names or DOCKER_FILE not in self._members:
            return found
        listed = self._docker_list()
        return (Candidate(_repo_tags(listed[0]) if len(listed) == 1 else (), found[0].descriptors),)

    def _from_docker(self, item: dict[str, object]) -> Candidate:
        config = self._read(string(item.get("Config"), "Config"))
        diff_ids = parse_config(config).diff_ids
        names = strings(item.get("Layers"), "Layers")
        if len(names) != len(diff_ids):
            raise InvalidManifest(f"{DOCKER_FILE} and the config differ in the number of layers")
        layers = [self._layer(name, diff_id) for name, diff_id in zip(names, diff_ids, strict=True)]
        config_descriptor = self._make(OCI_CONFIG, config)
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _to_json(config_descriptor),
            "layers": [_to_json(layer) for layer in layers],
        }
        content = json.dumps(manifest, separators=(",", ":"), sort_keys=True).encode()
        return Candidate(_repo_tags(item), (self._make(OCI_MANIFEST, content),))

    def _layer(self, name: str, diff_id: Digest) -> Descriptor:
        size_bytes = self._find(name).size_bytes
        with self._open(name) as file:
            if not is_compressed(file.read(4)):
                # Then it is what the config says, or unpacking will refuse it.
                self._layers[diff_id] = name
                return Descriptor(OCI_LAYER, diff_id, size_bytes, MappingProxyType({}))
        hashed = hashlib.sha256()
        with self._open(name) as file:
            while piece := file.read(CHUNK_BYTES):
                self._check()
                hashed.update(piece)
        digest = Digest(f"sha256:{hashed.hexdigest()}")
        self._layers[digest] = name
        return Descriptor(OCI_LAYER, digest, size_bytes, MappingProxyType({}))

    def _make(self, media_type: str, content: bytes) -> Descriptor:
        digest = Digest(f"sha256:{hashlib.sha256(content).hexdigest()}")
        self._made[digest] = content
        return Descriptor(media_type, digest, len(content), MappingProxyType({}))


def _repo_tags(item: dict[str, object]) -> tuple[str, ...]:
    try:
        return tuple(parse_reference(text).name for text in strings(item.get("RepoTags"), "RepoTags"))
    except InvalidReference as error:
        raise InvalidManifest(f"{DOCKER_FILE} holds a name that is none: {error.message}") from error


def _to_json(descriptor: Descriptor) -> dict[str, object]:
    return {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size_bytes,
    }
