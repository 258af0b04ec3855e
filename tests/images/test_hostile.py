"""No image, however made, changes anything outside its folder or gets in by a lie."""

import contextlib
import gzip
import io
import os
import random
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.core.errors import Invalid
from ramet.images.blobs import open_decompressed
from ramet.images.errors import ImageTooLarge, LayerCorrupt, UnsafePath
from ramet.images.limits import HEADER_BYTES_MAX, ImageLimits
from ramet.images.unpack import Staging
from tests.images.build import Entry, file, folder, hardlink, read_tree, symlink, tar, zstd

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices are for root")


def apply(place: Path, *layers: bytes, limits: ImageLimits | None = None) -> None:
    with Staging(place, limits or ImageLimits()) as staging:
        for layer in layers:
            staging.add_layer(io.BytesIO(layer))
        staging.finish()


class Jail:
    """A folder to unpack into, among files that must stay as they are."""

    def __init__(self, top: Path) -> None:
        self.outside = top / "outside"
        (self.outside / "folder").mkdir(parents=True)
        (self.outside / "canary").write_bytes(b"untouched")
        (self.outside / "folder/canary").write_bytes(b"untouched")
        self.staging = self.outside / "staging"
        self.staging.mkdir()
        self._before = self._look()

    def _look(self) -> dict[str, object]:
        return {
            path: node
            for path, node in read_tree(self.outside).items()
            if path != "/staging" and not path.startswith("/staging/")
        }

    def assert_untouched(self) -> None:
        assert self._look() == self._before


HOSTILE: list[tuple[str, type[Invalid], list[list[Entry]]]] = [
    ("a name with ..", UnsafePath, [[file("../canary", b"x")]]),
    ("a name with .. inside", UnsafePath, [[file("a/../../canary", b"x")]]),
    ("an absolute name with ..", UnsafePath, [[file("/../canary", b"x")]]),
    ("a whiteout with ..", UnsafePath, [[file("../.wh.canary")]]),
    ("a whiteout of ..", UnsafePath, [[file(".wh...")]]),
    ("a whiteout of .", UnsafePath, [[file(".wh..")]]),
    ("a whiteout of nothing", UnsafePath, [[file(".wh.")]]),
    ("an opaque mark outside", UnsafePath, [[file("../.wh..wh..opq")]]),
    ("content below a whiteout", LayerCorrupt, [[file(".wh.a/b")]]),
    ("a hard link with ..", UnsafePath, [[hardlink("a", "../canary")]]),
    ("a hard link to an absolute path", LayerCorrupt, [[hardlink("a", "/canary")]]),
    ("a hard link through a link", LayerCorrupt, [[symlink("l", ".."), hardlink("a", "l/canary")]]),
    ("a hard link to nothing", LayerCorrupt, [[hardlink("a", "b")]]),
    ("a hard link to a folder", LayerCorrupt, [[folder("d"), hardlink("a", "d")]]),
    ("a hard link to the root", LayerCorrupt, [[hardlink("a", "/")]]),
    ("a hard link in place of its own folder", LayerCorrupt, [[file("d/f"), hardlink("d", "d/f")]]),
    ("links in a loop", UnsafePath, [[symlink("a", "b"), symlink("b", "a"), file("a/f")]]),
    ("a dangling link as a folder", LayerCorrupt, [[symlink("a", "nowhere"), file("a/f")]]),
    ("a file as a folder", LayerCorrupt, [[file("a"), file("a/f")]]),
    ("a root that is a file", LayerCorrupt, [[file("./", b"x")]]),
    ("an unknown type", LayerCorrupt, [[Entry("a", type=b"Z")]]),
    ("a name too long for a file system", LayerCorrupt, [[file("n" * 300)]]),
    ("a path too long", UnsafePath, [[file("/".join(["n" * 200] * 30))]]),
    ("a path too deep", UnsafePath, [[file("d/" * 300 + "f")]]),
    (
        "a path too deep by links",
        UnsafePath,
        [[folder("d/" * 200), symlink("s", "d/" * 200), file("s/" + "e/" * 200 + "f")]],
    ),
    ("an impossible owner", LayerCorrupt, [[file("a", pax={"uid": "4294967295"})]]),
    ("a negative owner", LayerCorrupt, [[file("a", pax={"uid": "-1"})]]),
    ("a time that is no number", LayerCorrupt, [[file("a", pax={"mtime": "nan"})]]),
    ("a negative size", LayerCorrupt, [[file("a", pax={"size": "-1024"}), file("b")]]),
    ("a size beyond the stream", LayerCorrupt, [[file("a", b"x", pax={"size": "999999"})]]),
    ("a capability that is none", LayerCorrupt, [[file("a", pax={"SCHILY.xattr.security.capability": "x"})]]),
    ("a broken attribute", LayerCorrupt, [[file("a", pax={"LIBARCHIVE.xattr.user.a": "!"})]]),
    ("a long header", LayerCorrupt, [[file("a", pax={"comment": "x" * HEADER_BYTES_MAX})]]),
]


@pytest.mark.parametrize(
    ("error", "layers"), [case[1:] for case in HOSTILE], ids=[case[0] for case in HOSTILE]
)
def test_a_hostile_layer_is_refused_and_touches_nothing(
    tmp_path: Path, error: type[Invalid], layers: list[list[Entry]]
) -> None:
    jail = Jail(tmp_path)
    with pytest.raises(error) as caught:
        apply(jail.staging, *map(tar, layers))
    assert caught.value.code in ("unsafe_path", "layer_corrupt")
    jail.assert_untouched()


def test_links_out_of_the_image_lead_back_into_it(tmp_path: Path) -> None:
    jail = Jail(tmp_path)
    outside = str(jail.outside)
    apply(
        jail.staging,
        tar([symlink("up", ".."), symlink("abs", outside), symlink("far", "../" * 40 + outside)]),
        tar([file("up/canary", b"x"), folder(outside.lstrip("/")), file("abs/canary", b"x")]),
        tar([file("far/folder/canary", b"x"), file("up/folder/.wh..wh..opq"), file("abs/.wh.folder")]),
        tar([symlink("s", "../canary"), file("s", b"x"), folder("up", 0o777)]),
    )
    jail.assert_untouched()
    assert (jail.staging / "canary").read_bytes() == b"x"


def test_a_folder_replaced_by_a_link_is_not_followed_out(tmp_path: Path) -> None:
    jail = Jail(tmp_path)
    apply(
        jail.staging,
        tar([folder("d"), file("d/f")]),
        tar([symlink("d", "../folder"), folder("folder"), file("d/canary", b"x"), file("d/.wh..wh..opq")]),
    )
    jail.assert_untouched()


NAMES = st.lists(
    st.sampled_from(
        ["a", "b", "..", ".", "", "canary", "folder", "staging", ".wh.a", ".wh..wh..opq", "outside"]
    ),
    min_size=1,
    max_size=4,
).map("/".join)
TARGETS = st.one_of(
    NAMES,
    NAMES.map("/".__add__),
    NAMES.map("../".__add__),
    st.just("/proc/self/cwd"),
    st.just("/proc/self/root"),
)
ENTRIES = st.builds(
    Entry,
    name=st.one_of(NAMES, NAMES.map("/".__add__)),
    content=st.just(b""),
    type=st.sampled_from(
        [
            tarfile.REGTYPE,
            tarfile.DIRTYPE,
            tarfile.SYMTYPE,
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.FIFOTYPE,
        ]
    ),
    mode=st.sampled_from([0o777, 0o4755, 0]),
    uid=st.sampled_from([0, 12345]),
    target=TARGETS,
)


@settings(max_examples=300, deadline=None)
@given(layers=st.lists(st.lists(ENTRIES, min_size=1, max_size=6), min_size=1, max_size=4))
def test_no_mix_of_entries_reaches_outside(layers: list[list[Entry]]) -> None:
    with tempfile.TemporaryDirectory() as top:
        jail = Jail(Path(top))
        with Staging(jail.staging, ImageLimits()) as staging:
            for layer in layers:
                # After an error an import ends; here the rest still gets its chance to escape.
                try:
                    staging.add_layer(io.BytesIO(tar(layer)))
                except Invalid:
                    continue
            staging.finish()
        jail.assert_untouched()


BASE = tar(
    [
        folder("d"),
        file("d/f", b"content", pax={"SCHILY.xattr.user.a": "b", "mtime": "1.5"}),
        file("n" * 120, b"y" * 600),
        symlink("s", "d"),
        hardlink("h", "d/f"),
    ]
)


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 12))
def test_damage_anywhere_ends_in_an_error_of_ours_or_none(seed: int, count: int) -> None:
    chance = random.Random(seed)
    damaged = bytearray(BASE)
    for _ in range(count):
        damaged[chance.randrange(len(damaged))] = chance.choice(b"\0\xff017xSgLK=\n9")
    # A header's sum is repaired, or hardly any damage would get past it.
    for start in range(0, len(damaged), 512):
        if damaged[start + 257 : start + 262] == b"ustar":
            block = damaged[start : start + 512]
            block[148:156] = b" " * 8
            damaged[start + 148 : start + 156] = b"%06o\0 " % sum(block)
    with tempfile.TemporaryDirectory() as top:
        jail = Jail(Path(top))
        with contextlib.suppress(Invalid):
            apply(jail.staging, bytes(damaged))
        jail.assert_untouched()


@pytest.mark.parametrize("length", [1, 100, 511, 513, 1100, 1536, 2000])
def test_a_stream_cut_inside_an_entry_is_corrupt(tmp_path: Path, length: int) -> None:
    layer = tar([file("a", b"x" * 1200)], tarfile.USTAR_FORMAT)
    with pytest.raises(LayerCorrupt):
        apply(tmp_path, layer[:length])


def test_a_damaged_header_is_not_the_end_of_the_archive(tmp_path: Path) -> None:
    layer = bytearray(tar([file("a", b"x"), file("b", b"x")], tarfile.USTAR_FORMAT))
    layer[1024 + 10] ^= 1
    with pytest.raises(LayerCorrupt):
        apply(tmp_path, bytes(layer))


def test_a_chain_of_headers_is_bounded(tmp_path: Path) -> None:
    long_name = tarfile.TarInfo("././@LongLink")
    long_name.type, long_name.size = tarfile.GNUTYPE_LONGNAME, 2
    block = long_name.tobuf(tarfile.GNU_FORMAT) + b"a\0".ljust(512, b"\0")
    with pytest.raises(LayerCorrupt):
        apply(tmp_path, block * 5000 + tar([file("a")]))


def test_global_headers_do_not_add_up(tmp_path: Path) -> None:
    layer = b""
    for number in range(3):
        pax = {f"comment{number}": "x" * (HEADER_BYTES_MAX // 2)}
        layer += tarfile.TarInfo.create_pax_global_header(pax) + tar([file(f"f{number}")])[:512]
    with pytest.raises(LayerCorrupt):
        apply(tmp_path, layer)


@pytest.mark.parametrize(
    ("limits", "entries"),
    [
        (ImageLimits(image_bytes_max=1000), [file("a", b"x" * 600), file("b", b"x" * 600)]),
        (ImageLimits(image_bytes_max=1000), [file("a", b"x" * 600), file("a", b"x" * 600)]),
        (ImageLimits(entry_count_max=3), [file(name) for name in "aaaa"]),
    ],
)
def test_an_image_is_bounded_as_a_whole(tmp_path: Path, limits: ImageLimits, entries: list[Entry]) -> None:
    with pytest.raises(ImageTooLarge) as caught:
        apply(tmp_path, *(tar([entry]) for entry in entries), limits=limits)
    assert caught.value.code == "image_too_large"


def test_a_sparse_file_counts_with_its_holes(tmp_path: Path) -> None:
    pax = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 60), "GNU.sparse.numblocks": "1"}
    with pytest.raises(ImageTooLarge):
        apply(tmp_path, tar([file("a", pax=pax)]))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("map_text", ["0,10,5,10", "0,-5", "5,99", "0,4000"])
def test_a_map_of_holes_that_contradicts_itself_is_corrupt(tmp_path: Path, map_text: str) -> None:
    pax = {"GNU.sparse.map": map_text, "GNU.sparse.size": "5000" if "4000" in map_text else "20"}
    with pytest.raises(LayerCorrupt):
        apply(tmp_path, tar([file("a", b"x" * 15, pax=pax)]) + b"\0" * 8192)


def read_all(packed: bytes) -> bytes:
    plain = open_decompressed(io.BufferedReader(io.BytesIO(packed)))
    found = b""
    while piece := plain.read(65536):
        found += piece
    return found


@pytest.mark.parametrize("pack", [lambda plain: plain, gzip.compress, zstd.compress])
def test_each_compression_is_recognised_by_its_bytes(pack: Callable[[bytes], bytes]) -> None:
    assert read_all(pack(BASE)) == BASE


def test_streams_of_several_parts_are_read_to_the_end() -> None:
    assert read_all(gzip.compress(b"one") + gzip.compress(b"two")) == b"onetwo"
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0skip"
    assert read_all(skippable + zstd.compress(b"one") + skippable + zstd.compress(b"two")) == b"onetwo"


@pytest.mark.parametrize("pack", [gzip.compress, zstd.compress])
def test_a_damaged_compressed_stream_is_corrupt(pack: Callable[[bytes], bytes]) -> None:
    packed = pack(random.Random(1).randbytes(3000))
    for damaged in (packed[:-5], packed[: len(packed) // 2], packed + b"rubbish"):
        with pytest.raises(LayerCorrupt):
            read_all(damaged)


def test_a_zstd_stream_may_not_ask_for_all_our_memory() -> None:
    options: dict[int, int] = {
        zstd.CompressionParameter.window_log: 30,
        zstd.CompressionParameter.checksum_flag: 1,
    }
    packed = zstd.ZstdCompressor(options=options)
    content = packed.compress(b"x" * 1000) + packed.flush(zstd.ZstdCompressor.FLUSH_BLOCK) + packed.flush()
    with pytest.raises(LayerCorrupt):
        read_all(content)
