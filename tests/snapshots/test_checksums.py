"""A chunk that has changed is found, whichever form the memory has."""

import os
from pathlib import Path

import pytest

from ramet.core.compression import Compression
from ramet.core.ids import CaptureId
from ramet.core.verification import CHUNK_BYTES, Part
from ramet.snapshots.checksums import Checksums, Found, first_difference, look_at
from ramet.snapshots.compression import compress
from ramet.snapshots.manifest import Manifest
from ramet.vmm.port import MEMORY_FILE_NAME, CaptureFormat

MEMORY_BYTES = 8 * CHUNK_BYTES
CONTENT = {
    0: b"start" * 20_000,
    CHUNK_BYTES - 4096: os.urandom(2 * CHUNK_BYTES),  # From one chunk over a whole one into a third.
    5 * CHUNK_BYTES: bytes(CHUNK_BYTES),  # Zeros that are written.
    MEMORY_BYTES - 4096: b"e" * 4096,
}
ZERO_CHUNKS = (3, 4, 5, 6)


def make(folder: Path, content: dict[int, bytes] | None = None, *, devices: bytes = b"devices") -> Path:
    """Make the files of a capture, with the manifest of one."""
    folder.mkdir()
    with (folder / MEMORY_FILE_NAME).open("wb") as sparse:
        sparse.truncate(MEMORY_BYTES)
        for offset, data in (CONTENT if content is None else content).items():
            sparse.seek(offset)
            sparse.write(data)
    (folder / "devices").write_bytes(devices)
    write_manifest(folder)
    return folder


def write_manifest(folder: Path, **facts: object) -> None:
    form = CaptureFormat("fake", "1", 1, "kvm")
    manifest = Manifest(CaptureId("capture"), form, MEMORY_BYTES, MEMORY_BYTES, 0.0, **facts)  # type: ignore[arg-type]
    (folder / "manifest.json").write_bytes(manifest.to_bytes())


def pack(folder: Path, *, keep: bool = False) -> None:
    done = compress(folder / MEMORY_FILE_NAME, folder / "memory.packed", Compression.of())
    write_manifest(folder, compressed=done)
    if not keep:
        (folder / MEMORY_FILE_NAME).unlink()


def memory(folder: Path) -> list[Found]:
    return [found for found in look_at(folder) if found.part is Part.MEMORY]


@pytest.mark.parametrize("content", [{}, CONTENT], ids=["nothing", "something"])
def test_compressed_memory_has_the_checksums_of_the_memory(tmp_path: Path, content: dict[int, bytes]) -> None:
    folder = make(tmp_path / "capture", content)
    (raw,) = memory(folder)
    pack(folder, keep=True)
    assert [found.sums for found in memory(folder)] == [raw.sums, raw.sums]
    assert [found.damage for found in memory(folder)] == ["", ""]


def test_a_chunk_of_zeros_is_one_however_it_lies_on_the_disk(tmp_path: Path) -> None:
    (found,) = memory(make(tmp_path / "capture"))
    assert len(found.sums) == MEMORY_BYTES // CHUNK_BYTES
    assert tuple(index for index, one in enumerate(found.sums) if one is None) == ZERO_CHUNKS
    full = CONTENT | {3 * CHUNK_BYTES: bytes(CHUNK_BYTES)}
    (same,) = memory(make(tmp_path / "other", full))
    assert same.sums == found.sums


@pytest.mark.parametrize("offset", [0, CHUNK_BYTES + 77, 4 * CHUNK_BYTES + 1, MEMORY_BYTES - 1])
def test_a_bit_that_has_flipped_is_found_in_its_chunk(tmp_path: Path, offset: int) -> None:
    folder = make(tmp_path / "capture")
    (before,) = memory(folder)
    with (folder / MEMORY_FILE_NAME).open("r+b") as file:
        byte = os.pread(file.fileno(), 1, offset)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), offset)
    (after,) = memory(folder)
    assert first_difference(after.sums, before.sums) == offset // CHUNK_BYTES


def test_what_is_cut_off_differs_where_it_ends(tmp_path: Path) -> None:
    folder = make(tmp_path / "capture")
    (before,) = memory(folder)
    os.truncate(folder / MEMORY_FILE_NAME, 4 * CHUNK_BYTES)  # In the middle of the zeros.
    (after,) = memory(folder)
    assert first_difference(after.sums, before.sums) == 4
    assert first_difference(before.sums, after.sums) == 4


def test_a_stream_that_is_damaged_says_so_and_where(tmp_path: Path) -> None:
    folder = make(tmp_path / "capture")
    (before,) = memory(folder)
    pack(folder)
    data = bytearray((folder / "memory.packed").read_bytes())
    data[-CHUNK_BYTES // 2] ^= 1
    (folder / "memory.packed").write_bytes(data)
    (found,) = memory(folder)
    assert found.damage
    assert first_difference(found.sums, before.sums) is not None


def test_devices_have_checksums_too(tmp_path: Path) -> None:
    one = make(tmp_path / "one", devices=b"x" * (CHUNK_BYTES + 5))
    other = make(tmp_path / "other", devices=b"x" * (CHUNK_BYTES + 4) + b"y")
    found = [look_at(folder)[-1] for folder in (one, other)]
    assert [len(of.sums) for of in found] == [2, 2]
    assert first_difference(found[0].sums, found[1].sums) == 1


def test_memory_that_is_gone_is_told(tmp_path: Path) -> None:
    folder = make(tmp_path / "capture")
    (folder / MEMORY_FILE_NAME).unlink()
    (found,) = memory(folder)
    assert (found.size_bytes, found.damage) == (0, "it is gone")


def test_checksums_are_read_as_they_were_written() -> None:
    sums = Checksums({Part.MEMORY: (None, "ab", None), Part.DEVICES: ("cd",)})
    assert Checksums.from_bytes(sums.to_bytes(), (Part.MEMORY, Part.DEVICES)) == sums
    with pytest.raises(ValueError, match="schema"):
        Checksums.from_bytes(sums.to_bytes().replace(b'"schema":1', b'"schema":2'), (Part.MEMORY,))
    with pytest.raises(KeyError):
        Checksums.from_bytes(sums.to_bytes(), (Part.DISK,))
