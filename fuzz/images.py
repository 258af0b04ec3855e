"""Images from strangers: layers, archives, documents and names."""

import io
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import Final

from ramet.core.errors import Invalid
from ramet.images.archive import Archive
from ramet.images.blobs import Readable, open_decompressed
from ramet.images.config import config_from_json, config_to_json, parse_config
from ramet.images.documents import parse_index, parse_manifest
from ramet.images.errors import InvalidReference
from ramet.images.limits import ImageLimits
from ramet.images.reference import parse_reference
from ramet.images.unpack import Staging

LIMITS: Final = ImageLimits(
    layer_bytes_max=1 << 20,
    image_bytes_max=1 << 20,
    entry_count_max=200,
    layer_count_max=8,
    document_bytes_max=64 << 10,
)
READ_BYTES_MAX: Final = 1 << 20


class _Bounded(io.RawIOBase):
    """A stream that ends where the importer would refuse to read on."""

    def __init__(self, inner: Readable) -> None:
        self._inner = inner
        self._left = LIMITS.layer_bytes_max

    def read(self, size: int = -1) -> bytes:
        piece = self._inner.read(min(size if size >= 0 else self._left, self._left)) or b""
        self._left -= len(piece)
        return piece


def layer(data: bytes) -> None:
    """No layer touches what is outside its folder, makes it larger than allowed, or fails untyped.

    Two layers are one input: the first two bytes are the length of the first.
    """
    if len(data) < 2:
        return
    length = int.from_bytes(data[:2])
    layers = [data[2 : 2 + length], data[2 + length :]]
    top = Path(tempfile.mkdtemp(prefix="ramet-fuzz-"))
    try:
        canary = top / "canary"
        canary.write_bytes(b"untouched")
        (top / "folder").mkdir()
        staging = top / "staging"
        staging.mkdir()
        before = _outside(top)
        try:
            with Staging(staging, LIMITS) as folder:
                for content in filter(None, layers):
                    folder.add_layer(_Bounded(open_decompressed(io.BufferedReader(io.BytesIO(content)))))
                folder.finish()
        except Invalid:
            pass
        assert _outside(top) == before, "something outside the folder was touched"
        assert _size(staging) <= LIMITS.image_bytes_max, "more than the limit was written"
    finally:
        shutil.rmtree(top)


def _outside(top: Path) -> list[tuple[str, int, int, int, bytes]]:
    found = []
    for name in sorted(os.listdir(top)):
        if name == "staging":
            found.append((name, stat.S_IFMT(os.lstat(top / name).st_mode), 0, 0, b""))
            continue
        info = os.lstat(top / name)
        content = (top / name).read_bytes() if stat.S_ISREG(info.st_mode) else b""
        children = os.listdir(top / name) if stat.S_ISDIR(info.st_mode) else []
        found.append((name, info.st_mode, info.st_uid, len(children) + info.st_nlink, content))
    return found


def _size(folder: Path) -> int:
    sizes: dict[int, int] = {}
    for place, _, names in os.walk(os.fsencode(folder)):
        for name in names:
            info = os.lstat(os.path.join(place, name))
            if stat.S_ISREG(info.st_mode):
                sizes[info.st_ino] = info.st_size
    return sum(sizes.values())


def archive(data: bytes) -> None:
    """A file is an archive of images or a typed error, and what it lists can be read or is refused."""
    with tempfile.TemporaryDirectory(prefix="ramet-fuzz-") as folder:
        file = Path(folder) / "image.tar"
        file.write_bytes(data)
        scratch = Path(folder) / "scratch"
        scratch.mkdir()
        try:
            found = Archive(file, scratch, LIMITS)
            for candidate in found.candidates():
                for descriptor in candidate.descriptors:
                    with found.open_blob(descriptor) as blob:
                        blob.read(READ_BYTES_MAX)
        except Invalid:
            pass


def documents(data: bytes) -> None:
    """An index, a manifest or a config is one or is refused; a config is stored as it was read.

    The first byte chooses which.
    """
    if not data:
        return
    config = None
    try:
        match data[0] % 3:
            case 0:
                parse_index(data[1:])
            case 1:
                parse_manifest(data[1:])
            case _:
                config = parse_config(data[1:]).config
    except Invalid:
        return
    if config is not None:  # What we wrote ourselves must not be refused.
        assert config_from_json(config_to_json(config)) == config


def reference(data: bytes) -> None:
    """A name is one or is refused, and all ways to write it name the same image."""
    text = data.decode("utf-8", "replace")
    try:
        found = parse_reference(text)
    except InvalidReference:
        return
    assert parse_reference(str(found)) == found, "the full form names another image"
    assert parse_reference(found.display) == found, "the short form names another image"
