"""Kernels made here in each compression, damaged ones, and the indexes depmod writes."""

import gzip
import lzma
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import lz4.block
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.boot import kernel
from ramet.boot.kernel import KernelUnusable, modules_in_order, read_module, unpack_vmlinux

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

VMLINUX = b"\x7fELF" + bytes(range(256)) * 40_000  # 10 MB: more than one lz4 block of 8 MiB
Pack = Callable[[bytes], bytes]


def pack_lz4(vmlinux: bytes) -> bytes:
    """The format of `lz4 -l`: a magic, then blocks of 8 MiB behind their lengths."""
    blocks = [vmlinux[i : i + (8 << 20)] for i in range(0, len(vmlinux), 8 << 20)]
    packed = [lz4.block.compress(block, store_size=False) for block in blocks]
    return b"\x02\x21\x4c\x18" + b"".join(struct.pack("<I", len(block)) + block for block in packed)


def with_size(pack: Pack) -> Pack:
    return lambda vmlinux: pack(vmlinux) + struct.pack("<I", len(vmlinux))


PACKS: dict[str, Pack] = {
    "lz4": with_size(pack_lz4),
    "zstd": with_size(zstd.compress),
    "xz": with_size(lambda vmlinux: lzma.compress(vmlinux, preset=0)),
    "gzip": lambda vmlinux: gzip.compress(vmlinux, 1),
}


def bzimage(payload: bytes, *, version: int = 0x020F, setup_sectors: int = 2) -> bytes:
    """A bzImage with nothing but the header fields that matter, then 256 bytes of code, payload and rest."""
    header = bytearray((setup_sectors + 1) * 512)
    header[0x1F1] = setup_sectors
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", header, 0x206, version)
    struct.pack_into("<II", header, 0x248, 256, len(payload))
    return bytes(header) + b"\x90" * 256 + payload + b"the decompressor's own code"


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
def test_each_compression_is_unpacked(pack: Pack) -> None:
    assert unpack_vmlinux(bzimage(pack(VMLINUX))) == VMLINUX


def test_an_uncompressed_kernel_is_taken_as_it_is() -> None:
    assert unpack_vmlinux(VMLINUX) == VMLINUX


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"", "neither"),
        (b"\0" * 4096, "neither"),
        (bzimage(PACKS["zstd"](b"\x7fELF" + b"x" * 99), version=0x0207), "older"),
        (bzimage(b"BZh91AY&SY" + b"\0" * 20), "unknown way"),
        (bzimage(PACKS["zstd"](b"not a kernel")), "not an ELF"),
        (bzimage(zstd.compress(b"\x7fELF") + struct.pack("<I", 5)), "instead of 5"),
        (bzimage(pack_lz4(b"\x7fELF") + struct.pack("<I", 1 << 20)), "damaged|cut off"),
        (bzimage(zstd.compress(b"\x7fELF") + b"\xff" * 4), "claims"),
        (bzimage(PACKS["lz4"](VMLINUX))[:9000], "cut off"),
    ],
)
def test_what_is_no_kernel_is_refused_with_the_reason(image: bytes, words: str) -> None:
    with pytest.raises(KernelUnusable, match=words):
        unpack_vmlinux(image)


SMALL = {name: bzimage(pack(b"\x7fELF" + b"kernel" * 50)) for name, pack in PACKS.items()}


@given(st.sampled_from(sorted(SMALL)), st.data())
def test_a_damaged_kernel_never_passes_another_error(name: str, data: st.DataObject) -> None:
    image = bytearray(SMALL[name])
    at = data.draw(st.integers(0, len(image) - 1))
    image[at] ^= data.draw(st.integers(1, 255))
    try:
        vmlinux = unpack_vmlinux(bytes(image))
    except KernelUnusable:
        return
    assert vmlinux.startswith(b"\x7fELF")


def make_index(folder: Path, dependencies: str, built_in: str = "") -> Path:
    (folder / "modules.dep").write_text(dependencies)
    (folder / "modules.builtin").write_text(built_in)
    return folder


def test_a_module_comes_behind_all_it_depends_on(tmp_path: Path) -> None:
    modules = make_index(
        tmp_path,
        "kernel/virtio_pci.ko.xz: kernel/virtio_legacy.ko.xz kernel/virtio.ko.xz kernel/virtio_ring.ko.xz\n"
        "kernel/virtio_legacy.ko.xz:\n"
        "kernel/virtio.ko.xz: kernel/virtio_ring.ko.xz\n"
        "kernel/virtio_ring.ko.xz:\n"
        "kernel/virtio-rng.ko.xz: kernel/virtio.ko.xz kernel/virtio_ring.ko.xz\n",
    )
    names = [path.name for path in modules_in_order(modules, ["virtio_pci", "virtio_rng"])]
    assert names == [
        "virtio_ring.ko.xz",
        "virtio.ko.xz",
        "virtio_legacy.ko.xz",
        "virtio_pci.ko.xz",
        "virtio-rng.ko.xz",
    ]


def test_a_built_in_module_is_left_out(tmp_path: Path) -> None:
    modules = make_index(tmp_path, "kernel/erofs.ko:\n", "kernel/fs/ext4/ext4.ko\n")
    assert modules_in_order(modules, ["ext4", "erofs"]) == [modules / "kernel/erofs.ko"]


def test_a_kernel_without_a_needed_module_is_refused_by_its_name(tmp_path: Path) -> None:
    modules = make_index(tmp_path, "kernel/erofs.ko:\n")
    with pytest.raises(KernelUnusable, match="overlay"):
        modules_in_order(modules, ["erofs", "overlay"])


def test_the_soft_dependency_may_be_absent_and_is_taken_where_it_is_not(tmp_path: Path) -> None:
    modules = make_index(tmp_path, "kernel/erofs.ko:\n")
    assert modules_in_order(modules, ["crc32c_generic", "erofs"]) == [modules / "kernel/erofs.ko"]
    make_index(tmp_path, "kernel/erofs.ko:\nkernel/crc32c_generic.ko:\n")
    assert len(modules_in_order(modules, ["crc32c_generic", "erofs"])) == 2


def test_a_folder_without_an_index_says_so(tmp_path: Path) -> None:
    with pytest.raises(KernelUnusable, match=r"modules\.dep"):
        modules_in_order(tmp_path, ["erofs"])


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("m.ko", bytes),
        ("m.ko.xz", lzma.compress),
        ("m.ko.zst", zstd.compress),
        ("m.ko.gz", gzip.compress),
    ],
)
def test_a_module_is_unpacked_by_its_suffix_and_damage_is_refused(
    tmp_path: Path, name: str, pack: Pack
) -> None:
    path = tmp_path / name
    path.write_bytes(pack(b"\x7fELF module"))
    assert read_module(path) == b"\x7fELF module"
    path.write_bytes(b"garbage")
    with pytest.raises(KernelUnusable, match=r"m\.ko"):
        read_module(path)


@pytest.mark.parametrize(
    "line", ["kernel/a.ko: kernel/b.ko\nkernel/b.ko: kernel/a.ko\n", "kernel/a.ko: kernel/a.ko\n"]
)
def test_modules_that_depend_on_each_other_are_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(KernelUnusable, match="depends on itself"):
        modules_in_order(make_index(tmp_path, line), ["a"])


@pytest.mark.parametrize("name", ["modules.dep", "modules.builtin"])
def test_an_index_that_is_no_text_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    make_index(tmp_path, "kernel/a.ko:\n")
    (tmp_path / name).write_bytes(b"kernel/\xff.ko:\n")
    with pytest.raises(KernelUnusable, match=name) as caught:
        modules_in_order(tmp_path, ["a"])
    assert "depmod" in caught.value.remedy


def test_a_module_that_only_the_index_has_is_named(tmp_path: Path) -> None:
    with pytest.raises(KernelUnusable, match=r"a\.ko cannot be read"):
        read_module(tmp_path / "a.ko")


@pytest.mark.parametrize(
    ("suffix", "pack"), [("xz", lzma.compress), ("zst", zstd.compress), ("gz", gzip.compress)]
)
def test_a_module_that_is_cut_off_or_endless_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, pack: Pack
) -> None:
    path = tmp_path / f"m.ko.{suffix}"
    packed = pack(b"\x7fELF" + os.urandom(5000))
    path.write_bytes(packed[:-20])
    with pytest.raises(KernelUnusable, match="damaged"):
        read_module(path)
    path.write_bytes(packed)
    monkeypatch.setattr(kernel, "MODULE_BYTES_MAX", 5003)
    with pytest.raises(KernelUnusable, match="more than 5003 bytes"):
        read_module(path)
    monkeypatch.setattr(kernel, "MODULE_BYTES_MAX", 5004)
    assert len(read_module(path)) == 5004
