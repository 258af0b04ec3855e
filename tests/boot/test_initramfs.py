"""The archive is read back by a reader of its own, and by busybox's cpio."""

import stat
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.boot.initramfs import CpioWriter, build_initramfs
from tests.boot.archive import read_archive

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1)


@given(st.dictionaries(NAMES.filter(lambda name: name not in (".", "..", "TRAILER!!!")), st.binary()))
def test_what_is_written_is_read_back(files: dict[str, bytes]) -> None:
    writer = CpioWriter()
    for name, content in files.items():
        writer.add_file(name, content)
    found = read_archive(writer.finish())
    assert {name: entry.content for name, entry in found.items()} == files
    assert len({entry.inode for entry in found.values()}) == len(files)  # Equal ones would be hard links.


def test_the_guest_finds_its_program_console_and_modules() -> None:
    found = read_archive(build_initramfs(b"\x7fELFinit", [("b.ko", b"BB"), ("a.ko", b"A")]))
    assert found["init"].content == b"\x7fELFinit"
    assert found["init"].mode == stat.S_IFREG | 0o755
    assert stat.S_ISCHR(found["dev/console"].mode)
    assert found["dev/console"].device == (5, 1)
    assert found["modules/order"].content == b"b.ko\na.ko\n"
    assert found["modules/a.ko"].content == b"A"
    assert found["modules/a.ko"].mode == stat.S_IFREG | 0o644


def test_a_folder_comes_before_what_lies_in_it() -> None:
    names = list(read_archive(build_initramfs(b"i", [("a.ko", b"A")])))
    for position, name in enumerate(names):
        folder = name.rpartition("/")[0]
        assert folder in ("", *names[:position])


def test_the_same_input_makes_the_same_bytes() -> None:
    modules = [("a.ko", b"A" * 7)]
    assert build_initramfs(b"init", modules) == build_initramfs(b"init", modules)


def test_busybox_lists_the_same_names() -> None:
    archive = build_initramfs(b"init", [("a.ko", b"AAA"), ("b.ko", b"")])
    listed = subprocess.run(["busybox", "cpio", "-t"], input=archive, capture_output=True, check=True).stdout
    assert listed.decode().split() == list(read_archive(archive))


def test_an_absolute_name_is_a_mistake_of_ours() -> None:
    with pytest.raises(AssertionError):
        CpioWriter().add_file("/init", b"")
