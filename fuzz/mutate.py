"""Inputs near the seeds, from a seeded generator: the same ones on every machine.

This is what the suite fuzzes with: no coverage, no clock, no dependency. It knows what our formats are made
of (words of the seeds, numbers at their edges, repaired tar checksums), which random bytes never get past.
"""

import json
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

CHANGES_MAX: Final = 6
TAR_BLOCK_BYTES: Final = 512
INTERESTING: Final = (
    b"\0",
    b"\xff",
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"Infinity",
    b"9" * 400,
    b"18446744073709551616",
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'""',
    b'"\\ud800"',
    b'"\\u0000"',
    b"[" * 2000,
    b"../",
    b"\xf5\x9d\xc2\xe8\xb1\xfa\x8f\xd6\xa4\xff\x93\xcb\xe0\xbd\xf1\x87",
    "é☃".encode(),
    b"\r\n",
    b"\n\n",
)
JSON_VALUES: Final[tuple[object, ...]] = (
    None,
    True,
    0,
    -1,
    1.5,
    1 << 63,
    1 << 64,
    10**400,
    float("nan"),
    float("inf"),
    "",
    "0",
    "\0",
    "\ud800",
    "a\nb",
    "..",
    "/",
    "x" * 300,
    "sha256:" + "0" * 64,
    [],
    {},
    [[]],
    [None],
    {"": None},
)
_WORD: Final = re.compile(rb"[A-Za-z0-9_.+-]{2,}")


def inputs(seeds: Sequence[bytes], count: int, bytes_max: int, seed: int = 1) -> Iterator[bytes]:
    """Yield `count` inputs made from `seeds`, each at most `bytes_max` bytes."""
    chance = random.Random(seed)
    words = sorted({word for text in seeds for word in _WORD.findall(text)})[:2000] or [b"a"]
    for _ in range(count):
        data = bytearray(chance.choice(seeds)) if seeds else bytearray()
        for _ in range(chance.randint(1, CHANGES_MAX)):
            changed = change_json(bytes(data), chance) if chance.random() < 0.6 else None
            if changed is None:
                _change(data, chance, seeds, words)
            else:
                data[:] = changed
        if chance.random() < 0.8:
            repair_tar(data)
        yield bytes(data[:bytes_max])


def _change(data: bytearray, chance: random.Random, seeds: Sequence[bytes], words: Sequence[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    match chance.randrange(7):
        case 0 if data:
            data[at % len(data)] = chance.randrange(256)
        case 1:
            data[at:at] = chance.choice(INTERESTING)
        case 2:
            length = chance.choice((1, 2, 8, 64, TAR_BLOCK_BYTES))
            data[at : at + length] = chance.choice(INTERESTING)
        case 3:
            del data[at : at + chance.choice((1, 2, 8, 64, TAR_BLOCK_BYTES))]
        case 4:
            length = chance.choice((4, 32, TAR_BLOCK_BYTES, 2 * TAR_BLOCK_BYTES))
            data[at:at] = data[max(0, at - length) : at]
        case 5:
            found = _WORD.search(data, at)
            if found is not None:
                data[found.start() : found.end()] = chance.choice(words)
        case _:
            other = chance.choice(seeds) if seeds else b""
            start = chance.randrange(len(other) + 1)
            data[at:] = other[start:]


def change_json(data: bytes, chance: random.Random) -> bytes | None:
    """Return the JSON `data`, maybe behind a byte of its own, with one value changed; None if it is none."""
    for head in (b"", data[:1]):
        try:
            tree = json.loads(data[len(head) :])
            places = list(_places(tree))
            if places:
                _change_place(*chance.choice(places), places, chance)
            else:
                tree = chance.choice(JSON_VALUES)
            return head + json.dumps(tree).encode()
        except (ValueError, RecursionError):
            continue
    return None


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each value inside `tree` as its container and its key there."""
    keys = tree.keys() if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in list(keys):
        yield tree, key
        yield from _places(tree[key])


def _change_place(container: Any, key: Any, places: list[tuple[Any, Any]], chance: random.Random) -> None:
    other, other_key = chance.choice(places)
    match chance.randrange(5):
        case 0:
            del container[key]
        case 1:
            container[key] = json.loads(json.dumps(other[other_key]))
        case 2 if isinstance(container, dict):
            container[chance.choice(("", "later", "\ud800", str(other_key)))] = container[key]
        case 3 if isinstance(container, list):
            container.extend(container[key : key + 1] * chance.choice((1, 200)))
        case _:
            container[key] = chance.choice(JSON_VALUES)


def repair_tar(data: bytearray) -> None:
    """Set the checksum of everything that looks like a tar header."""
    for found in re.finditer(rb"ustar", bytes(data)):
        start = found.start() - 257
        block = data[start : start + TAR_BLOCK_BYTES]
        if start < 0 or len(block) < TAR_BLOCK_BYTES:
            continue
        block[148:156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(block)
