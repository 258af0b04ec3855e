"""The copy of a guest's memory is the memory at the end, whatever was done to it on the way.

The guest here is a process that writes, reads and gives back pages when told.
"""

import ctypes
import mmap
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.linux import writewatch
from ramet.linux.memfd import SealableFile
from ramet.linux.pagemap import PAGE_BYTES, copy_pages
from ramet.vmm.qemu.memory import CATCH_UP_BYTES, Copier, GuestMemory, lay_over
from tests.linux.writer import PAGE_COUNT, Writer

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="tracing another process is for root"),
    pytest.mark.skipif(not writewatch.is_supported(), reason="needs Linux 6.7"),
]

TOUCHED_COUNT = 40

step = st.tuples(
    st.sampled_from(["write", "read", "give-back", "catch up"]),
    st.sets(st.integers(0, TOUCHED_COUNT - 1), min_size=1),
)


def copy_all(writer: Writer) -> bytes:
    """Return the first TOUCHED_COUNT pages, read one by one."""
    real = bytearray(TOUCHED_COUNT * PAGE_BYTES)
    address = ctypes.addressof(ctypes.c_char.from_buffer(real))
    for offset in range(0, len(real), PAGE_BYTES):
        copy_pages(writer.pid, [(writer.start + offset, PAGE_BYTES)], address - writer.start)
    return bytes(real)


@pytest.mark.parametrize("is_watched", [True, False], ids=["watched", "not watched"])
@settings(max_examples=40, deadline=None)
@given(st.lists(step, max_size=8), st.lists(step, max_size=8))
def test_the_changes_over_the_base_are_the_memory_at_the_end(
    is_watched: bool, before: list[tuple[str, set[int]]], between: list[tuple[str, set[int]]]
) -> None:
    size_bytes = PAGE_COUNT * PAGE_BYTES
    base, target = SealableFile("base", size_bytes), SealableFile("changes", size_bytes)
    os.pwrite(base.fd, b"x" * size_bytes, 0)
    writer = Writer(base.fd, mmap.MADV_NOHUGEPAGE, is_watchable=is_watched)
    other = Writer(base.fd, mmap.MADV_NOHUGEPAGE)
    try:
        guest = GuestMemory(writer.pid, writer.start, size_bytes, base.path)
        copier = Copier(guest, target, base)
        for what, pages in before:
            if what != "catch up":
                writer.do(what, *pages)
        copier.copy_ahead()
        for what, pages in between:
            if what == "catch up":
                copier.catch_up()
            else:
                writer.do(what, *pages)
        copier.copy_rest()
        assert copier.changes is not None
        lay_over(GuestMemory(other.pid, other.start, size_bytes, base.path), target, copier.changes)
        assert copy_all(other) == copy_all(writer)
        assert os.pread(base.fd, size_bytes, 0) == b"x" * size_bytes
    finally:
        writer.close()
        other.close()
        target.close()
        base.close()


@pytest.mark.parametrize("reason", ["another base", "much has changed"])
def test_what_cannot_be_a_difference_is_copied_as_a_whole(reason: str) -> None:
    size_bytes = PAGE_COUNT * PAGE_BYTES
    base, target = SealableFile("base", size_bytes), SealableFile("whole", size_bytes)
    other = SealableFile("other", size_bytes)
    for file in (base, other):
        os.pwrite(file.fd, b"x" * TOUCHED_COUNT * PAGE_BYTES, 0)
    writer = Writer(base.fd, mmap.MADV_NOHUGEPAGE)
    try:
        writer.do("write", *range(1 if reason == "another base" else TOUCHED_COUNT))
        guest = GuestMemory(writer.pid, writer.start, size_bytes, base.path)
        copier = Copier(guest, target, other if reason == "another base" else base)
        copier.copy_ahead()
        copier.copy_rest()
        assert copier.changes is None
        assert os.pread(target.fd, TOUCHED_COUNT * PAGE_BYTES, 0) == copy_all(writer)
    finally:
        writer.close()
        for file in (target, base, other):
            file.close()


@pytest.mark.parametrize("is_watched", [True, False], ids=["watched", "not watched"])
@pytest.mark.parametrize("has_file", [True, False], ids=["of a file", "anonymous"])
@settings(max_examples=40, deadline=None)
@given(st.lists(step, max_size=8), st.lists(step, max_size=8))
def test_a_copy_made_in_steps_is_the_memory_at_the_end(
    has_file: bool,
    is_watched: bool,
    before: list[tuple[str, set[int]]],
    between: list[tuple[str, set[int]]],
) -> None:
    base = None
    if has_file:
        base = SealableFile("base", PAGE_COUNT * PAGE_BYTES)
        os.pwrite(base.fd, b"x" * TOUCHED_COUNT * PAGE_BYTES, 0)
    fd = None if base is None else base.fd
    writer = Writer(fd, mmap.MADV_NOHUGEPAGE, is_watchable=is_watched)
    target = SealableFile("copy", PAGE_COUNT * PAGE_BYTES)
    try:
        guest = GuestMemory(
            writer.pid, writer.start, PAGE_COUNT * PAGE_BYTES, None if base is None else base.path
        )
        copier = Copier(guest, target)
        for what, pages in before:
            if what != "catch up":
                writer.do(what, *pages)
        copier.copy_ahead()
        for what, pages in between:
            if what == "catch up":
                copier.catch_up()
            else:
                writer.do(what, *pages)
        copier.copy_rest()
        assert os.pread(target.fd, TOUCHED_COUNT * PAGE_BYTES, 0) == copy_all(writer)
    finally:
        writer.close()
        target.close()
        if base is not None:
            base.close()


def test_only_what_was_written_since_is_copied_in_the_end() -> None:
    writer = Writer(None, mmap.MADV_NOHUGEPAGE, is_watchable=True)
    writer.do("write", *range(3000))
    target = SealableFile("copy", PAGE_COUNT * PAGE_BYTES)
    copier = Copier(GuestMemory(writer.pid, writer.start, PAGE_COUNT * PAGE_BYTES, None), target)
    assert copier.copy_ahead() == 3000 * PAGE_BYTES
    writer.do("write", *range(1000))
    assert 1000 * PAGE_BYTES > CATCH_UP_BYTES
    assert copier.catch_up() == 1000 * PAGE_BYTES
    writer.do("write", 5, 3500)
    assert copier.copy_rest() == 2 * PAGE_BYTES
    writer.close()
    target.close()
