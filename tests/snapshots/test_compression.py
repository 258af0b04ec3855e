"""Sparse files are compressed and come back as they were, or it is said that they do not."""

import os
from pathlib import Path

import pytest

from ramet.core.compression import LEVELS, Compression, CompressionAlgorithm
from ramet.core.errors import Invalid
from ramet.snapshots.compression import MemoryDamaged, compress, data_extents, decompress

MEMORY_BYTES = 16 << 20
FAST = Compression.of()
ALL = [
    Compression(algorithm, level)
    for algorithm, levels in LEVELS.items()
    for level in (levels[0], 3, levels[-1])
]
CONTENT = {0: b"start" * 20_000, 5 << 20: os.urandom(3 << 20), (16 << 20) - 4096: b"e" * 4096}


def make(file: Path, content: dict[int, bytes]) -> Path:
    with file.open("wb") as sparse:
        sparse.truncate(MEMORY_BYTES)
        for offset, data in content.items():
            sparse.seek(offset)
            sparse.write(data)
    return file


def extents(file: Path) -> list[tuple[int, int]]:
    with file.open("rb") as opened:
        return list(data_extents(opened.fileno()))


@pytest.mark.parametrize("how", ALL, ids=lambda how: f"{how.algorithm}-{how.level}")
@pytest.mark.parametrize("content", [{}, CONTENT], ids=["nothing", "something"])
def test_a_sparse_file_comes_back_with_its_holes(
    tmp_path: Path, how: Compression, content: dict[int, bytes]
) -> None:
    raw = make(tmp_path / "raw", content)
    done = compress(raw, tmp_path / "packed", how)
    assert done.size_bytes == (tmp_path / "packed").stat().st_size
    if how.algorithm is CompressionAlgorithm.LZ4:
        assert list(done.extents or ()) == extents(raw)
    decompress(tmp_path / "packed", tmp_path / "again", done, MEMORY_BYTES)
    assert (tmp_path / "again").read_bytes() == raw.read_bytes()
    assert extents(tmp_path / "again") == extents(raw)


def test_only_data_is_compressed(tmp_path: Path) -> None:
    done = compress(make(tmp_path / "raw", CONTENT), tmp_path / "packed", FAST)
    assert 3 << 20 < done.size_bytes < (3 << 20) + (64 << 10)  # What is random stays as large as it is.


@pytest.mark.parametrize("algorithm", CompressionAlgorithm)
@pytest.mark.parametrize("damage", ["empty", "cut", "changed", "foreign"])
def test_damage_is_found_and_nothing_is_made_of_it(
    tmp_path: Path, algorithm: CompressionAlgorithm, damage: str
) -> None:
    packed = tmp_path / "packed"
    done = compress(make(tmp_path / "raw", CONTENT), packed, Compression.of(algorithm))
    data = bytearray(packed.read_bytes())
    match damage:
        case "empty":
            data.clear()
        case "cut":
            del data[len(data) // 2 :]
        case "changed":
            data[len(data) // 2] ^= 1
        case _:
            other = compress(make(tmp_path / "other", {0: b"x" * 9000}), tmp_path / "o", done.how)
            data = bytearray((tmp_path / "o").read_bytes())
            assert other.sha256 != done.sha256
    packed.write_bytes(data)
    with pytest.raises(MemoryDamaged):
        decompress(packed, tmp_path / "again", done, MEMORY_BYTES)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("algorithm", "level"), [("gzip", None), ("zstd", 0), ("zstd", 20), ("lz4", 10), ("lz4", -1)]
)
def test_what_no_algorithm_can_is_invalid(algorithm: str, level: int | None) -> None:
    with pytest.raises(Invalid):
        Compression.of(algorithm, level)


def test_the_default_is_fast() -> None:
    assert Compression.of() == Compression(CompressionAlgorithm.ZSTD, 1)
    assert Compression.of("lz4") == Compression(CompressionAlgorithm.LZ4, 0)
