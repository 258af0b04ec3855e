"""A sealed file cannot be changed."""

import mmap
import os

import pytest

from ramet.linux.memfd import SealableFile


def test_a_sealed_file_refuses_writes_holes_and_growth() -> None:
    file = SealableFile("t", 8192)
    mapped, _ = file.map_for_fill()
    mapped[:4] = b"once"
    del mapped
    private = mmap.mmap(file.fd, 8192, flags=mmap.MAP_PRIVATE)
    file.seal()
    with pytest.raises(PermissionError):
        os.pwrite(file.fd, b"twice", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(file.fd, 0)
    with pytest.raises(PermissionError):
        os.posix_fallocate(file.fd, 0, 16384)
    again = os.open(file.path, os.O_RDWR)  # As a VMM does.
    with pytest.raises(PermissionError):
        os.pwrite(again, b"twice", 0)
    private[:4] = b"mine"
    assert os.pread(file.fd, 4, 0) == b"once"
    os.close(again)
    private.close()
    file.close()


def test_a_shared_writer_prevents_the_seal() -> None:
    file = SealableFile("t", 4096)
    shared = mmap.mmap(file.fd, 4096)
    with pytest.raises(OSError):
        file.seal()
    shared.close()
    file.seal()
    file.close()
