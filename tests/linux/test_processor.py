"""Processors are told apart by what they are and by what they can."""

from pathlib import Path

from ramet.linux.processor import read_processor

INTEL = """processor\t: 0
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: one of many
stepping\t: 8
cpu MHz\t\t: {mhz}
flags\t\t: {flags}

processor\t: 1
vendor_id\t: another
"""


def read(folder: Path, name: str, **facts: str) -> str:
    file = folder / name
    file.write_text(INTEL.format(**facts))
    return read_processor(file)


def test_a_processor_is_the_same_at_any_speed_and_another_with_other_features(tmp_path: Path) -> None:
    first = read(tmp_path, "first", mhz="2000", flags="fpu avx2")
    assert first.rpartition(" ")[0] == "GenuineIntel 6 143 8"
    assert read(tmp_path, "faster", mhz="3000", flags="avx2 fpu") == first
    assert read(tmp_path, "better", mhz="2000", flags="fpu avx2 avx512f") != first


def test_this_host_tells_what_it_is() -> None:
    assert len(read_processor().split()) == 5
