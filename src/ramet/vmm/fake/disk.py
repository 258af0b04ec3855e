"""The fake's disk: files by name, kept behind the clusters of real, empty qcow2 layers.

A line of JSON for each write is appended to the top layer; reading looks through the chain from the top. So a
fork, a frozen layer and a chain drawn together mean what they mean on a real disk, on the very files that
`ramet.disks` makes and deletes. In a raw layer, which is a whole disk, the lines stand at its beginning,
behind a mark and their length.
"""

import json
import os
import struct
from pathlib import Path
from typing import BinaryIO, Final

_CLUSTER_BYTES: Final = 1 << 16
_RAW: Final = b"raw"
_QCOW2_MAGIC: Final = b"QFI\xfb"
_RAW_HEAD: Final = struct.Struct(">8sQ")  # The mark, and how many bytes of lines follow.
_RAW_MARK: Final = b"RAMETRAW"


def write_file(top: Path, name: str, content: str) -> None:
    """Append one write to the layer `top`."""
    line = json.dumps([name, content]).encode() + b"\n"
    if _is_qcow2(top):
        with top.open("ab") as file:
            file.write(line)
        return
    with top.open("r+b") as file:
        length = _raw_length(file)
        file.seek(_RAW_HEAD.size + length)
        file.write(line)
        file.seek(0)
        file.write(_RAW_HEAD.pack(_RAW_MARK, length + len(line)))


def read_file(layers: list[Path], name: str) -> str | None:
    """Return the content of `name` in the chain `layers`, topmost first; None if there is none."""
    for layer in layers:
        written = dict(_writes(layer))
        if name in written:
            return written[name]
    return None


def read_files(layers: list[Path]) -> dict[str, str]:
    """Return the content of every file of the chain `layers`, topmost first."""
    return {name: content for layer in reversed(layers) for name, content in _writes(layer)}


def draw_together(layers: list[Path], base: Path) -> list[Path]:
    """Move what is between the top of `layers` and `base` into the top; returns the new chain."""
    top, lower = layers[0], layers[layers.index(base) :]
    own = _writes(top)
    merged = [write for layer in reversed(layers[1 : layers.index(base)]) for write in _writes(layer)]
    os.truncate(top, _data_offset(top))
    for name, content in [*merged, *own]:
        write_file(top, name, content)
    _set_raw_backing(top, base)
    return [top, *lower]


def _writes(layer: Path) -> list[tuple[str, str]]:
    with layer.open("rb") as file:
        if _is_qcow2(layer):
            file.seek(_data_offset(layer))
            lines = file.read()
        else:
            length = _raw_length(file)
            lines = file.read(length)
        return [(name, content) for name, content in map(json.loads, lines.splitlines())]


def _is_qcow2(layer: Path) -> bool:
    with layer.open("rb") as file:
        return file.read(len(_QCOW2_MAGIC)) == _QCOW2_MAGIC


def _raw_length(file: BinaryIO) -> int:
    """Return how many bytes of lines a raw layer has; the file stands before them then."""
    head = file.read(_RAW_HEAD.size)
    mark, length = _RAW_HEAD.unpack(head.ljust(_RAW_HEAD.size, b"\0"))
    return int(length) if mark == _RAW_MARK else 0


def _data_offset(layer: Path) -> int:
    """Return where the clusters of an empty qcow2 end: header, refcounts and its L1 table."""
    with layer.open("rb") as file:
        l1_entries: int = struct.unpack_from(">I", file.read(104), 36)[0]
    return (3 + -(-l1_entries * 8 // _CLUSTER_BYTES)) * _CLUSTER_BYTES


def _set_raw_backing(layer: Path, backing: Path) -> None:
    """Name `backing`, a raw file, in the header of `layer`: as QEMU does when it has streamed."""
    name = os.fsencode(backing)
    with layer.open("r+b") as file:
        (name_offset,) = struct.unpack_from(">Q", file.read(104), 8)
        file.seek(108)  # The length of the first extension, which is the backing's format.
        file.write(struct.pack(">I", len(_RAW)) + _RAW.ljust(8, b"\0"))
        file.seek(16)
        file.write(struct.pack(">I", len(name)))
        file.seek(name_offset)
        file.write(name)
