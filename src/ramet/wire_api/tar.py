"""The tar format as guests and hosts exchange it, without I/O: headers written, streams read piece by piece.

A stream may come from a guest that means ill. So nothing here trusts a length: a header that is longer than
`HEADER_BYTES_MAX` ends the reading, file content passes through without being kept, and a stream that stops
before its end mark is damaged, never short.
"""

import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from ramet.core.errors import Invalid

BLOCK_BYTES: Final = 512
HEADER_BYTES_MAX: Final = 1 << 20  # Of all headers before one entry.
SPARSE_MAP_BYTES_MAX: Final = 64 << 10
FILE_BYTES_MAX: Final = 2**63 - 1  # What off_t can count.
END_OF_ARCHIVE: Final = bytes(2 * BLOCK_BYTES)

_ENCODING: Final = "utf-8"
_ERRORS: Final = "surrogateescape"
_NS_PER_S: Final = 1_000_000_000
_DECIMAL_DIGITS_MAX: Final = 20


class TarDamaged(Invalid):
    """The bytes are no tar archive, or only the beginning of one."""

    code = "archive_invalid"
    remedy_default = "copy again, and see that whoever sends it still runs"


class Kind(Enum):
    """What an entry is. OTHER is a device, or what we do not know."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"
    FIFO = "fifo"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry's header. Names carry undecodable bytes as surrogates; `size_bytes` counts holes."""

    name: str
    kind: Kind
    mode: int
    size_bytes: int = 0
    mtime_ns: int = 0
    uid: int = 0
    gid: int = 0
    link: str = ""


@dataclass(frozen=True, slots=True)
class Piece:
    """Content of the current entry; what lies between pieces is a hole."""

    offset: int
    data: bytes


class EntryEnd(Enum):
    """Follows the last piece of each entry."""

    END = "end"


Event = Entry | Piece | EntryEnd

_KIND_OF: Final[Mapping[bytes, Kind]] = {
    tarfile.REGTYPE: Kind.FILE,
    tarfile.AREGTYPE: Kind.FILE,
    tarfile.CONTTYPE: Kind.FILE,
    tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.SYMTYPE: Kind.SYMLINK,
    tarfile.LNKTYPE: Kind.HARDLINK,
    tarfile.FIFOTYPE: Kind.FIFO,
}
_TYPE_OF: Final = {
    Kind.FILE: tarfile.REGTYPE,
    Kind.DIRECTORY: tarfile.DIRTYPE,
    Kind.SYMLINK: tarfile.SYMTYPE,
    Kind.HARDLINK: tarfile.LNKTYPE,
    Kind.FIFO: tarfile.FIFOTYPE,
}


def header(entry: Entry) -> bytes:
    """Return what stands in an archive before the content of `entry`, which must not be of kind OTHER."""
    info = tarfile.TarInfo(entry.name)
    info.type = _TYPE_OF[entry.kind]
    info.mode, info.uid, info.gid = entry.mode, entry.uid, entry.gid
    info.size = entry.size_bytes if entry.kind is Kind.FILE else 0
    info.linkname = entry.link
    seconds, nanoseconds = divmod(entry.mtime_ns, _NS_PER_S)
    info.mtime = seconds
    if nanoseconds and seconds >= 0:
        info.pax_headers = {"mtime": f"{seconds}.{nanoseconds:09}"}
    return info.tobuf(tarfile.PAX_FORMAT, _ENCODING, _ERRORS)


def padding(size_bytes: int) -> bytes:
    """Return what follows content of that size."""
    return bytes(-size_bytes % BLOCK_BYTES)


class TarReader:
    """Reads a stream as it comes in; `is_complete` once its end mark has been read."""

    def __init__(self) -> None:
        self.is_complete = False
        self._buffer = bytearray()
        self._header_bytes = 0
        self._wanted_bytes = BLOCK_BYTES  # Before it is worth to look at the buffer again.
        self._records: dict[str, str] = {}
        self._left_bytes = 0  # Of the current entry's content in the stream.
        self._padding_bytes = 0
        self._is_inside = False
        self._position = 0  # In the file, of the next piece.
        self._segments: list[tuple[int, int]] | None = None  # What is left of a sparse file's map.

    def feed(self, data: bytes) -> Iterator[Event]:
        """Yield what `data` completes; exhaust it before feeding more.

        Raises:
            TarDamaged: this is no archive.
        """
        if self._is_inside and not self._buffer and self._segments is None and len(data) < self._left_bytes:
            self._left_bytes -= len(data)
            yield self._piece(data)  # The common case, without a copy.
            return
        self._buffer += data
        while not self.is_complete:
            if self._is_inside:
                if self._left_bytes:
                    if not self._buffer:
                        return
                    yield from self._content()
                    continue
                self._is_inside = False
                self._segments = None
                yield EntryEnd.END
            if self._padding_bytes:
                dropped = min(self._padding_bytes, len(self._buffer))
                del self._buffer[:dropped]
                self._padding_bytes -= dropped
            if self._padding_bytes or len(self._buffer) < self._wanted_bytes:
                return
            before_bytes = len(self._buffer)
            entry = self._read_header()
            if entry is not None:
                yield entry
            elif len(self._buffer) == before_bytes and not self.is_complete:
                return
        self._buffer.clear()

    def close(self) -> None:
        """Say that the stream has ended.

        Raises:
            TarDamaged: it may not end here.
        """
        if not self.is_complete:
            raise TarDamaged("The archive ends before its end")

    def _piece(self, data: bytes) -> Piece:
        piece = Piece(self._position, data)
        self._position += len(data)
        return piece

    def _content(self) -> Iterator[Piece]:
        taken = min(self._left_bytes, len(self._buffer))
        if self._segments is not None:
            while self._segments and not self._segments[0][1]:
                self._segments.pop(0)
            if not self._segments:
                raise TarDamaged("A sparse file's map of holes contradicts its length")
            self._position, length = self._segments[0]
            taken = min(taken, length)
            self._segments[0] = (self._position + taken, length - taken)
        data = bytes(memoryview(self._buffer)[:taken])
        del self._buffer[:taken]
        self._left_bytes -= taken
        yield self._piece(data)

    def _read_header(self) -> Entry | None:
        """Read one header block with what belongs to it.

        None if it is about the next one (then it is taken from the buffer), is not all there, or is the end.
        """
        self._wanted_bytes = BLOCK_BYTES
        block = bytes(self._buffer[:BLOCK_BYTES])
        if not any(block):
            self.is_complete = True
            return None
        try:
            info = tarfile.TarInfo.frombuf(block, _ENCODING, _ERRORS)
        except (tarfile.HeaderError, ValueError) as error:
            raise TarDamaged(f"The archive is damaged: {error}") from error
        if info.size < 0:
            raise TarDamaged("The archive is damaged: an entry has a negative length")
        if info.type in (
            tarfile.XHDTYPE,
            tarfile.XGLTYPE,
            tarfile.GNUTYPE_LONGNAME,
            tarfile.GNUTYPE_LONGLINK,
        ):
            self._read_extension(info)
            return None
        size_bytes = _number(self._records["size"]) if "size" in self._records else info.size
        kind = _KIND_OF.get(info.type, Kind.OTHER)
        if kind in (Kind.DIRECTORY, Kind.SYMLINK, Kind.HARDLINK, Kind.FIFO):
            size_bytes = 0  # A hard link's size is that of its target, and nothing follows it.
        map_bytes = 0
        real_bytes = size_bytes
        if kind is Kind.FILE and self._records.get("GNU.sparse.major") == "1":
            found = _read_map(self._buffer, size_bytes)
            if found is None:
                self._wanted_bytes = len(self._buffer) + BLOCK_BYTES
                return None
            map_bytes, segments = found
            real_bytes = _number(self._records.get("GNU.sparse.realsize", ""))
            _check_map(segments, real_bytes, size_bytes - map_bytes)
            if real_bytes > FILE_BYTES_MAX:
                raise TarDamaged("The archive holds a sparse file that is longer than any file can be")
            self._segments = segments
        elif any(name.startswith("GNU.sparse.") for name in self._records) or info.type == b"S":
            raise TarDamaged("The archive holds a sparse file in an old form")
        entry = self._entry(info, kind, real_bytes)
        del self._buffer[: BLOCK_BYTES + map_bytes]
        self._records, self._header_bytes = {}, 0
        self._left_bytes, self._padding_bytes = size_bytes - map_bytes, -size_bytes % BLOCK_BYTES
        self._is_inside, self._position = True, 0
        return entry

    def _entry(self, info: tarfile.TarInfo, kind: Kind, size_bytes: int) -> Entry:
        records = self._records
        mtime_ns = int(info.mtime) * _NS_PER_S
        return Entry(
            name=records.get("GNU.sparse.name") or records.get("path") or info.name,
            kind=kind,
            mode=info.mode & 0o7777,
            size_bytes=size_bytes,
            mtime_ns=_nanoseconds(records["mtime"]) if "mtime" in records else mtime_ns,
            uid=_number(records["uid"]) if "uid" in records else info.uid,
            gid=_number(records["gid"]) if "gid" in records else info.gid,
            link=records.get("linkpath") or info.linkname,
        )

    def _read_extension(self, info: tarfile.TarInfo) -> None:
        whole_bytes = BLOCK_BYTES + info.size + -info.size % BLOCK_BYTES
        if self._header_bytes + whole_bytes > HEADER_BYTES_MAX:
            raise TarDamaged(f"The headers of one entry exceed {HEADER_BYTES_MAX} bytes")
        if len(self._buffer) < whole_bytes:
            self._wanted_bytes = whole_bytes
            return
        payload = bytes(self._buffer[BLOCK_BYTES : BLOCK_BYTES + info.size])
        del self._buffer[:whole_bytes]
        self._header_bytes += whole_bytes
        if info.type == tarfile.XHDTYPE:
            self._records.update(_read_records(payload))
        elif info.type != tarfile.XGLTYPE:  # Global records only describe: nothing we use.
            name = "path" if info.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
            self._records[name] = payload.split(b"\0")[0].decode(_ENCODING, _ERRORS)


def _read_records(payload: bytes) -> dict[str, str]:
    records = {}
    at = 0
    while at < len(payload):
        space = payload.find(b" ", at, at + _DECIMAL_DIGITS_MAX)
        length = _number(payload[at:space].decode("latin-1")) if space > at else 0
        record = payload[space + 1 : at + length]
        name, equals, value = record.partition(b"=")
        if space < 0 or at + length > len(payload) or not equals or value[-1:] != b"\n":
            raise TarDamaged("The archive is damaged: an extended header cannot be read")
        records[name.decode(_ENCODING, _ERRORS)] = value[:-1].decode(_ENCODING, _ERRORS)
        at += length
    return records


def _read_map(buffer: bytearray, size_bytes: int) -> tuple[int, list[tuple[int, int]]] | None:
    """Return the length and content of the map before a sparse file's content; None if more is needed."""
    limit = BLOCK_BYTES + min(size_bytes, SPARSE_MAP_BYTES_MAX)
    numbers: list[int] = []
    at = BLOCK_BYTES
    while not numbers or len(numbers) < 1 + 2 * numbers[0]:
        end = buffer.find(b"\n", at, limit)
        if end < 0:
            if len(buffer) >= limit:
                raise TarDamaged("A sparse file's map of holes is damaged or too long")
            return None
        numbers.append(_number(bytes(buffer[at:end]).decode("latin-1")))
        at = end + 1
    map_bytes = at - BLOCK_BYTES
    map_bytes += -map_bytes % BLOCK_BYTES
    if len(buffer) < BLOCK_BYTES + map_bytes:
        return None
    return map_bytes, list(zip(numbers[1::2], numbers[2::2], strict=True))


def _check_map(segments: list[tuple[int, int]], real_bytes: int, content_bytes: int) -> None:
    position = 0
    for start, length in segments:
        if start < position or start + length > real_bytes:
            raise TarDamaged("A sparse file's map of holes contradicts itself")
        position = start + length
    if sum(length for _, length in segments) != content_bytes:
        raise TarDamaged("A sparse file's map of holes contradicts its length")


def _number(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > _DECIMAL_DIGITS_MAX:
        raise TarDamaged(f"The archive is damaged: {text[:_DECIMAL_DIGITS_MAX]!r} is no number")
    return int(text)


def _nanoseconds(text: str) -> int:
    sign = -1 if text.startswith("-") else 1
    seconds, _, fraction = text.removeprefix("-").partition(".")
    return sign * (_number(seconds) * _NS_PER_S + _number(f"{fraction[:9]:0<9}"))
