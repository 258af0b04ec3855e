"""Paths in state files: put in each other's place where that is safe, refused otherwise."""

import struct
from collections.abc import Callable

import pytest

from ramet.vmm.firecracker.rewrite import (
    FolderNotNamed,
    FoldersUnequal,
    StateDamaged,
    crc64,
    read_state,
    rewrite_folder,
)
from ramet.vmm.port import SnapshotIncompatible

MAGIC = struct.pack("<Q", 0x0710_1984_8664_0000)
OLD, NEW = "/srv/theirs/vm", "/srv/of-us/abc"


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def sealed(body: bytes) -> bytes:
    return body + struct.pack("<Q", crc64(body))


def with_lengths(*texts: str, version: str = "8.0.0") -> bytes:
    return sealed(
        MAGIC + string(version) + b"\x01\xff" + b"\x00".join(string(text) for text in texts) + b"\x07"
    )


def packed(*texts: str, version: str = "10.0.0") -> bytes:
    head = b"\x00" + MAGIC + bytes([len(version)]) + version.encode()
    return sealed(head + bytes(len(text) for text in texts) + "".join(texts).encode() + b"\x07")


def test_the_checksum_is_that_of_redis() -> None:
    assert crc64(b"123456789") == 0xE9C6_D914_C4B8_D9CA
    assert crc64(b"") == 0
    assert crc64(sealed(b"anything")) == 0


@pytest.mark.parametrize("make", [with_lengths, packed])
def test_every_path_in_a_folder_is_rewritten_and_nothing_else(make: Callable[..., bytes]) -> None:
    others = ("relative.raw", "/srv/theirs/vmx/disk", "/srv/theirs")
    content = make(f"{OLD}/root.img", *others, f"{OLD}/a/b")
    rewritten, count = rewrite_folder(content, OLD, NEW)
    assert count == 2
    assert rewritten == make(f"{NEW}/root.img", *others, f"{NEW}/a/b")
    assert rewrite_folder(rewritten, NEW, OLD) == (content, 2)
    assert read_state(rewritten).version == read_state(content).version


@pytest.mark.parametrize("new", ["/srv/short", f"{NEW}x", "srv/of-us/abcd", "/srv/of-us/ab\0"])
def test_what_cannot_take_its_place_is_refused(new: str) -> None:
    with pytest.raises(FoldersUnequal) as refused:
        rewrite_folder(with_lengths(f"{OLD}/root.img"), OLD, new)
    assert refused.value.remedy


def test_a_folder_that_is_not_named_is_refused() -> None:
    for texts in ((), ("/srv/theirs/vmx/disk",), (OLD,)):
        with pytest.raises(FolderNotNamed):
            rewrite_folder(with_lengths(*texts), OLD, NEW)


def test_a_folder_in_the_middle_of_a_path_is_refused() -> None:
    with pytest.raises(FolderNotNamed, match="in the middle"):
        rewrite_folder(with_lengths(f"{OLD}/root.img", f"/mnt{OLD}/root.img"), OLD, NEW)


@pytest.mark.parametrize("at", [0, 9, 30, -1])
def test_a_file_that_is_not_as_it_was_written_is_refused(at: int) -> None:
    content = bytearray(with_lengths(f"{OLD}/root.img"))
    content[at] ^= 1
    with pytest.raises(StateDamaged, match="checksum"):
        rewrite_folder(bytes(content), OLD, NEW)


@pytest.mark.parametrize(
    "content",
    [b"", b"short", bytes(10_000_001), sealed(bytes(64)), sealed(MAGIC + string("none") + bytes(32))],
)
def test_what_is_no_state_file_is_refused(content: bytes) -> None:
    with pytest.raises(StateDamaged):
        read_state(content)


@pytest.mark.parametrize("content", [with_lengths(version="3.0.0"), packed(version="11.0.0")])
def test_a_format_that_is_not_known_is_refused(content: bytes) -> None:
    with pytest.raises(SnapshotIncompatible):
        read_state(content)
