"""Paths in a state file of Firecracker: for snapshots that somebody else took, and that name folders.

Ours name only the folders of what all share (`ramet.vmm.firecracker.build`). The file is the VMM's own and
not promised; its strings lie in it as they are, so a folder can be put in the place of one as long. It ends
with a checksum of all before, CRC-64 with Jones' polynomial, which is checked before and made anew.
"""

import re
import struct
from dataclasses import dataclass
from typing import Final

from ramet.core.errors import Broken, Invalid
from ramet.vmm.port import SnapshotIncompatible

STATE_BYTES_MAX: Final = 10_000_000
"""As Firecracker itself reads at most."""
FORMATS_KNOWN: Final = range(4, 11)
"""Major numbers of the format: 4.0.0 is that of Firecracker 1.10, 10.0.0 that of 1.16."""
_MAGIC: Final = struct.pack("<Q", 0x0710_1984_8664_0000)  # x86-64
_CRC: Final = struct.Struct("<Q")
_LENGTH: Final = struct.Struct("<Q")
_VERSION: Final = re.compile(rb"\d{1,3}\.\d{1,3}\.\d{1,3}")
_VERSION_BYTES_MAX: Final = 11
_PATH_BYTES_MAX: Final = 4096
_POLYNOMIAL: Final = 0x95AC_9329_AC4B_C9B5  # 0xad93d23594c935a9, its bits reversed.


class StateDamaged(Broken):
    """A state file is none, or not as it was written."""

    code = "firecracker_state_damaged"


class FoldersUnequal(Invalid):
    """One folder cannot be put in the place of the other: they are not as long."""

    code = "folders_not_as_long"


class FolderNotNamed(Invalid):
    """A state file does not name the folder, or not as one."""

    code = "folder_not_in_state"


@dataclass(frozen=True, slots=True)
class State:
    """A state file, the version of its format, and whether each string in it follows its length."""

    content: bytes
    version: str
    has_lengths: bool


def read_state(content: bytes) -> State:
    """Check a state file.

    Raises:
        StateDamaged: it is none, is too large, or its checksum is another.
        SnapshotIncompatible: its format is not known here.
    """
    if not len(_MAGIC) + _CRC.size < len(content) <= STATE_BYTES_MAX:
        raise StateDamaged(f"a state file of {len(content)} bytes", remedy="copy the snapshot again")
    (told,) = _CRC.unpack(content[-_CRC.size :])
    if crc64(content[: -_CRC.size]) != told:
        raise StateDamaged(
            "the state file's checksum is not that of its content", remedy="copy the snapshot again"
        )
    version, has_lengths = _find_version(content)
    if int(version.partition(".")[0]) not in FORMATS_KNOWN:
        raise SnapshotIncompatible(
            f"the format of this state file is {version}",
            remedy=f"take it with a Firecracker of format {FORMATS_KNOWN[0]} to {FORMATS_KNOWN[-1]}",
            found=version,
        )
    return State(content, version, has_lengths)


def rewrite_folder(content: bytes, old: str, new: str) -> tuple[bytes, int]:
    """Put `new` in the place of folder `old` wherever a path of the state file begins with it.

    Returns the new content, and how often that was.

    Raises:
        FoldersUnequal: they are not as long, or not absolute.
        FolderNotNamed: no path begins with `old`, or it stands elsewhere, too.
        StateDamaged, SnapshotIncompatible: as of `read_state`.
    """
    before, after = (f"{folder.rstrip('/')}/".encode() for folder in (old, new))
    if (
        len(before) != len(after)
        or not (before.startswith(b"/") and after.startswith(b"/"))
        or b"\0" in after
    ):
        raise FoldersUnequal(
            f"{old} has {len(before) - 1} bytes and {new} {len(after) - 1}",
            remedy="import the snapshot into an absolute folder whose path is as long, such as a link",
        )
    state = read_state(content)
    body = content[: -_CRC.size]
    count = body.count(before)
    if count == 0:
        raise FolderNotNamed(
            f"no path of the snapshot begins with {old}", remedy="name the folder it was taken in"
        )
    if state.has_lengths and not all(
        _is_string(body, match.start()) for match in re.finditer(re.escape(before), body)
    ):
        raise FolderNotNamed(
            f"{old} stands in the snapshot in the middle of a string", remedy="name the folder from its root"
        )
    body = body.replace(before, after)
    rewritten = body + _CRC.pack(crc64(body))
    assert len(rewritten) == len(content)
    read_state(rewritten)
    return rewritten, count


def crc64(data: bytes) -> int:
    """Return the checksum of `data`: Jones' polynomial, reflected, begun with 0."""
    total = 0
    for byte in data:
        total = _TABLE[(total ^ byte) & 0xFF] ^ (total >> 8)
    return total


def _find_version(content: bytes) -> tuple[str, bool]:
    """Return the format's version, which follows the magic number, and how strings are stored."""
    for at, size, has_lengths in ((0, _LENGTH.size, True), (1, 1, False)):
        begin = at + len(_MAGIC)
        if content[at:begin] != _MAGIC:
            continue
        length = int.from_bytes(content[begin : begin + size], "little")
        text = content[begin + size : begin + size + min(length, _VERSION_BYTES_MAX + 1)]
        if _VERSION.fullmatch(text):
            return text.decode(), has_lengths
    raise StateDamaged(
        "this is no state file of Firecracker for x86-64", remedy="choose the snapshot's state file"
    )


def _is_string(body: bytes, start: int) -> bool:
    """Tell whether a string begins at `start`, after its length."""
    if start < _LENGTH.size:
        return False
    length: int = _LENGTH.unpack(body[start - _LENGTH.size : start])[0]
    return 0 < length <= _PATH_BYTES_MAX and start + length <= len(body)


def _make_table() -> tuple[int, ...]:
    table: list[int] = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return tuple(table)


_TABLE: Final = _make_table()
