"""Own pages, as the kernel tells them."""

import ctypes
import mmap
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.linux import pagemap
from ramet.linux.memfd import SealableFile
from ramet.linux.pagemap import PAGE_BYTES, copy_pages, find_own_pages, subtract


def address_of(area: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


@pytest.mark.parametrize("how", [find_own_pages, "pagemap"])
def test_touched_pages_of_an_anonymous_mapping_are_own(how: object) -> None:
    area = mmap.mmap(-1, 64 * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    start = address_of(area)
    for index in (3, 4, 5, 40):
        area[index * PAGE_BYTES] = 7
    end = start + len(area)
    if how == "pagemap":
        fd = os.open("/proc/self/pagemap", os.O_RDONLY)
        runs = pagemap._read_pagemap(fd, start, end)
        os.close(fd)
    else:
        runs = find_own_pages(os.getpid(), start, end)
    assert runs == [(start + 3 * PAGE_BYTES, 3 * PAGE_BYTES), (start + 40 * PAGE_BYTES, PAGE_BYTES)]


def test_pages_only_read_from_a_private_file_mapping_are_not_own() -> None:
    base = SealableFile("base", 16 * PAGE_BYTES)
    os.pwrite(base.fd, b"x" * 16 * PAGE_BYTES, 0)
    area = mmap.mmap(base.fd, 16 * PAGE_BYTES, flags=mmap.MAP_PRIVATE)
    start = address_of(area)
    assert area[2 * PAGE_BYTES] == ord("x")
    area[9 * PAGE_BYTES] = 1
    assert find_own_pages(os.getpid(), start, start + len(area)) == [(start + 9 * PAGE_BYTES, PAGE_BYTES)]
    del area
    base.close()


def test_copied_pages_are_equal() -> None:
    area = mmap.mmap(-1, 3000 * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    for index in range(0, 3000, 2):  # More runs than one call takes.
        area[index * PAGE_BYTES : index * PAGE_BYTES + 2] = index.to_bytes(2, "big")
    target = SealableFile("copy", len(area))
    mapped, here = target.map_for_fill()
    start = address_of(area)
    runs = find_own_pages(os.getpid(), start, start + len(area))
    assert copy_pages(os.getpid(), runs, here - start) == 1500 * PAGE_BYTES
    assert mapped[:] == area[:]
    del mapped
    target.close()


def test_a_page_that_cannot_be_read_is_an_error() -> None:
    area = mmap.mmap(-1, PAGE_BYTES)
    with pytest.raises(OSError):
        copy_pages(os.getpid(), [(PAGE_BYTES, PAGE_BYTES)], address_of(area) - PAGE_BYTES)


@given(st.sets(st.integers(0, 60)), st.sets(st.integers(0, 60)))
def test_subtract_is_set_difference(left: set[int], right: set[int]) -> None:
    def runs(pages: set[int]) -> list[pagemap.Run]:
        found: list[pagemap.Run] = []
        for page in sorted(pages):
            pagemap._append(found, page * PAGE_BYTES, PAGE_BYTES)
        return found

    difference = {
        address // PAGE_BYTES + index
        for address, length in subtract(runs(left), runs(right))
        for index in range(length // PAGE_BYTES)
    }
    assert difference == left - right
