"""What `ramet cp` gets from a guest: tar streams, unpacked on this host."""

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from fuzz.wire import cuts
from ramet.client.unpack import unpack
from ramet.core.errors import RametError
from ramet.wire_api.tar import Event, Piece, TarDamaged, TarReader

TEMPORARY: Final = ".ramet-copy-"


def copied(data: bytes) -> None:
    """However a stream is cut, it means the same, and nothing changes outside the folder it is unpacked in.

    The first byte decides how it is cut, and how its names become those of this host.
    """
    if not data:
        return
    seed, stream = data[0], data[1:]
    assert _read([stream]) == _read(list(cuts(stream, seed))), "cut, the archive is another"
    top = Path(tempfile.mkdtemp(prefix="ramet-fuzz-"))
    try:
        (top / "canary").write_bytes(b"untouched")
        (top / "folder").mkdir()
        goal = top / "goal"
        goal.mkdir()
        (goal / "out").symlink_to(top / "folder")
        before = _outside(top)
        name, is_wrapped = ((None, False), ("new", True), ("new", False), (None, True))[seed % 4]
        with suppress(RametError):
            unpack([stream], str(goal), name=name, is_wrapped=is_wrapped, keep_owner=False)
        assert _outside(top) == before, "something outside the folder was touched"
        _check_whole(goal)
    finally:
        shutil.rmtree(top)


def _read(pieces: list[bytes]) -> list[Event | str]:
    """Return what a fresh reader finds, with content that belongs together in one piece, however it came."""
    reader = TarReader()
    found: list[Event | str] = []
    try:
        for event in (event for piece in pieces for event in reader.feed(piece)):
            match event, found[-1] if found else None:
                case Piece(offset, data), Piece(before, begun) if before + len(begun) == offset:
                    found[-1] = Piece(before, begun + data)
                case _:
                    found.append(event)
        reader.close()
    except TarDamaged:
        found.append("damaged")
    return found


def _outside(top: Path) -> list[tuple[str, int, int, bytes]]:
    canary, folder = os.lstat(top / "canary"), os.lstat(top / "folder")
    return [
        *((name, 0, 0, b"") for name in sorted(os.listdir(top))),
        ("canary", canary.st_mode, canary.st_nlink, (top / "canary").read_bytes()),
        ("folder", folder.st_mode, folder.st_mtime_ns, "".join(os.listdir(top / "folder")).encode()),
    ]


def _check_whole(goal: Path) -> None:
    """Nothing half-made is left, and nothing that could be opened to reach a device."""
    for place, folders, names in os.walk(os.fsencode(goal)):
        for name in [*folders, *names]:
            assert not name.startswith(TEMPORARY.encode()), "something half-made was left"
            mode = os.lstat(os.path.join(place, name)).st_mode
            assert mode & 0o170000 not in (0o060000, 0o020000), "a device was made"
