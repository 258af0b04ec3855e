"""Where a sparse file holds data: lseek(2), SEEK_DATA and SEEK_HOLE."""

import errno
import os
from array import array
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Run:
    """Bytes that lie in one piece: at `offset` of what is read, at `file_offset` of the open file `fd`."""

    offset: int
    length_bytes: int
    fd: int
    file_offset: int

    def read(self, skip_bytes: int, length_bytes: int) -> bytes:
        """Return bytes of the run; what lies behind the end of the file is zeros.

        Raises:
            OSError: it cannot be read.
        """
        found = bytearray()
        while len(found) < length_bytes:
            at = self.file_offset + skip_bytes + len(found)
            data = os.pread(self.fd, length_bytes - len(found), at)
            if not data:
                break
            found += data
        return bytes(found.ljust(length_bytes, b"\0"))

    def pieces(self, size_bytes: int) -> Iterator[tuple[int, bytes]]:
        """Yield all of it in order, in pieces of at most `size_bytes`, each with its offset.

        Raises:
            OSError: it cannot be read, or the file has become shorter.
        """
        done = 0
        while done < self.length_bytes:
            wanted = min(size_bytes, self.length_bytes - done)
            data = os.pread(self.fd, wanted, self.file_offset + done)
            if not data:
                raise OSError(errno.EIO, "it has been cut off")
            yield self.offset + done, data
            done += len(data)


def data_runs(fd: int, block_bytes: int) -> Iterator[Run]:
    """Yield the data of a file in order, in whole blocks but for its end.

    Raises:
        OSError: the file system cannot tell.
    """
    at, size_bytes = 0, os.fstat(fd).st_size
    while at < size_bytes:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # None from there on.
                return
            raise
        end = os.lseek(fd, data, os.SEEK_HOLE)
        begin, end = data - data % block_bytes, min(end + -end % block_bytes, size_bytes)
        yield Run(begin, end - begin, fd, begin)
        at = end


class DataMap:
    """Where a file that does not change held data when it was asked.

    A file system may tell more or less of it later: what waits in memory to be written gets its blocks then.

    Raises, on construction:
        OSError: the file system cannot tell.
    """

    def __init__(self, fd: int, block_bytes: int) -> None:
        self._fd = fd
        self._places = array("Q")
        for run in data_runs(fd, block_bytes):
            self._places.extend((run.offset, run.length_bytes))

    def runs(self) -> Iterator[Run]:
        """Yield the data in order, in whole blocks but for the end of the file."""
        for index in range(0, len(self._places), 2):
            offset, length_bytes = self._places[index : index + 2]
            yield Run(offset, length_bytes, self._fd, offset)
