"""An exported snapshot is an archive that any tar can list."""

import io
import tarfile

import pytest

from ramet.snapshots.export_file import END, PartReader, entry_header, padding


@pytest.mark.parametrize("size_bytes", [0, 511, 512, 8**11 - 1, 8**11, 100 << 30, 10**17])
def test_a_header_says_the_size_however_large(size_bytes: int) -> None:
    header = entry_header("disk", size_bytes)
    assert len(header) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(header + END), mode="r|") as archive:
        entry = archive.next()
        assert entry is not None
        assert (entry.name, entry.size, entry.isreg()) == ("disk", size_bytes, True)


def test_entries_follow_each_other() -> None:
    bodies = {"a": b"x" * 513, "b": b"", "c": b"y" * 512}
    data = b"".join(
        entry_header(name, len(body)) + body + padding(len(body)) for name, body in bodies.items()
    )
    with tarfile.open(fileobj=io.BytesIO(data + END)) as archive:
        found = {name: archive.extractfile(name) for name in archive.getnames()}
        assert {name: file.read() for name, file in found.items() if file is not None} == bodies


def test_a_part_may_come_in_a_byte_at_a_time() -> None:
    written: dict[int, bytes] = {}
    part = PartReader("memory", 10_000, 4096, written.__setitem__)
    pieces = {0: b"a" * 4096, 8192: b"b" * 1808}
    for offset, data in pieces.items():
        for byte in offset.to_bytes(8, "big") + len(data).to_bytes(4, "big") + data:
            part.feed(bytes([byte]))
    assert len(part.finish()) == 64
    assert written == pieces
