"""Which memfds a process maps, as /proc says."""

import mmap
import os

import pytest

from ramet.linux.memfd import SealableFile
from ramet.linux.process import mapped_memfds

SIZE_BYTES = 2 << 20


def test_a_mapped_memfd_is_told_with_its_size_and_whoever_maps_it_names_it_alike() -> None:
    file, other = SealableFile("ramet-memory", SIZE_BYTES), SealableFile("another-name", SIZE_BYTES)
    assert mapped_memfds(os.getpid(), "ramet-memory") == {}
    with (
        mmap.mmap(file.fd, SIZE_BYTES, mmap.MAP_PRIVATE),
        mmap.mmap(file.fd, 4096, mmap.MAP_PRIVATE),
        mmap.mmap(other.fd, SIZE_BYTES, mmap.MAP_PRIVATE),
    ):
        file.close()
        other.close()
        found = mapped_memfds(os.getpid(), "ramet-memory")
        assert list(found.values()) == [SIZE_BYTES + 4096]
        child = os.fork()
        if not child:
            os._exit(0 if mapped_memfds(os.getpid(), "ramet-memory") == found else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert mapped_memfds(os.getpid(), "ramet-memory") == {}


def test_a_process_that_is_gone_is_told() -> None:
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(ProcessLookupError):
        mapped_memfds(child, "ramet-memory")
