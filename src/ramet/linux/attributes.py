"""Netlink attributes: the type-length-value pairs that messages of every netlink family are made of."""

import struct
import sys
from collections.abc import Iterator
from typing import Final

# linux/netlink.h
NLA_F_NESTED: Final = 0x8000
NLA_TYPE_MASK: Final = 0x3FFF

_ATTR: Final = struct.Struct("=HH")  # struct nlattr


def attr(kind: int, payload: bytes) -> bytes:
    """Pack one attribute, padded to four bytes."""
    return _ATTR.pack(4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def nest(kind: int, *attrs: bytes) -> bytes:
    """Pack an attribute that holds others, packed already."""
    return attr(kind | NLA_F_NESTED, b"".join(attrs))


def text(kind: int, value: str) -> bytes:
    """Pack a string, with the NUL at its end."""
    return attr(kind, value.encode() + b"\0")


def u8(kind: int, value: int) -> bytes:
    """Pack a number of one byte."""
    return attr(kind, bytes((value,)))


def u32(kind: int, value: int) -> bytes:
    """Pack a number of four bytes."""
    return attr(kind, struct.pack("=I", value))


def u64(kind: int, value: int) -> bytes:
    """Pack a number of eight bytes."""
    return attr(kind, struct.pack("=Q", value))


def unpack(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Return the attributes in `data`, each as (kind, payload); what is cut short ends them."""
    at = 0
    while at + 4 <= len(data):
        size, kind = _ATTR.unpack_from(data, at)
        if size < 4:
            return
        yield kind & NLA_TYPE_MASK, data[at + 4 : at + size]
        at += (size + 3) & ~3


def as_text(value: bytes | None) -> str:
    """Return the string in a payload, empty if there is none."""
    return "" if value is None else value.rstrip(b"\0").decode(errors="replace")


def as_u32(value: bytes | None, default: int) -> int:
    """Return the number in a payload of four bytes, `default` if there is none."""
    return default if value is None else int.from_bytes(value[:4], sys.byteorder)


def as_u64(value: bytes | None, default: int) -> int:
    """Return the number in a payload of eight bytes, `default` if there is none."""
    return default if value is None else int.from_bytes(value[:8], sys.byteorder)
