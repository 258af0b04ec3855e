"""Our qcow2 files, read by QEMU's own tool."""

import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.disks.qcow2 import create_qcow2, read_backing


@pytest.mark.parametrize("size_bytes", [1 << 20, 10 << 30, (5 << 40) + 512])
def test_qemu_finds_the_file_sound(tmp_path: Path, size_bytes: int) -> None:
    base = tmp_path / "base.raw"
    with base.open("wb") as file:
        file.truncate(size_bytes)
    create_qcow2(tmp_path / "top.qcow2", size_bytes, base, "raw")
    subprocess.run(["qemu-img", "check", tmp_path / "top.qcow2"], check=True, stdout=subprocess.DEVNULL)
    command: list[str | Path] = ["qemu-img", "info", "--output=json", tmp_path / "top.qcow2"]
    told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    assert told["virtual-size"] == size_bytes
    assert told["backing-filename"] == str(base)
    assert told["backing-filename-format"] == "raw"


def test_the_backing_shines_through(tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(b"seed" * 1024 * 256)
    create_qcow2(tmp_path / "a.qcow2", 1 << 20, base, "raw")
    create_qcow2(tmp_path / "b.qcow2", 1 << 20, tmp_path / "a.qcow2", "qcow2")
    command: list[str | Path] = ["qemu-img", "compare", tmp_path / "b.qcow2", base]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "x.qcow2").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        create_qcow2(tmp_path / "x.qcow2", 1 << 20, tmp_path / "base", "raw")
    assert (tmp_path / "x.qcow2").read_bytes() == b"precious"


@settings(max_examples=30)
@given(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=60))
def test_the_backing_name_reads_back(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder = tmp_path_factory.mktemp("q")
    create_qcow2(folder / "top.qcow2", 1 << 20, folder / name, "qcow2")
    assert read_backing(folder / "top.qcow2") == folder / name
