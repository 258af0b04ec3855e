"""When checksums are made of what is stored, and when they are compared.

```
captures/<id>/checksums.json     of memory and devices
snapshots/<id>.disk.json         of the disk of a named snapshot
                                 both written whole, once; without them nobody has come to it yet
```

They are made when something has lain for a while: memory that is woken from at once is spared it. One at a
time is read, in a process of the lowest priority, and whoever wakes from it ends that. A daemon that is
killed leaves all of them or none; the next makes those that are missing.
"""

import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from os import getpid
from pathlib import Path
from typing import Final, Generic

import anyio
import structlog

from ramet.core.ids import CaptureId
from ramet.core.verification import CheckedPart, Part, Proof
from ramet.snapshots.backlog import Backlog, KeyT
from ramet.snapshots.checksums import CHECKSUMS_FILE, Checksums, Found, first_difference
from ramet.store.paths import write_whole

SETTLE_S: Final = 5.0
"""How long something lies before its checksums are made."""
REST_S: Final = 60.0
"""How long one is left alone that somebody wakes from."""
_UNREADABLE: Final = (OSError, ValueError, TypeError, KeyError, RecursionError)

log = structlog.get_logger(__name__)


class Verifier(Generic[KeyT]):
    """Makes and compares the checksums of what is stored, each under a key. For the event loop's thread.

    Args:
        parts: what has checksums, each its own.
        file_of: where those of a key lie; None: what was stored under it is there no more.
        look: reads all that is stored under a key; OSError: it cannot be looked at.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        file_of: Callable[[KeyT], Path | None],
        look: Callable[[KeyT], Awaitable[Sequence[Found]]],
    ) -> None:
        self._parts, self._file_of, self._look = parts, file_of, look
        self._backlog = Backlog[KeyT]()

    async def run(self) -> None:
        """Make what is due, until cancelled."""
        await self._backlog.run(self._make)

    def note(self, key: KeyT) -> None:
        """Have checksums be made of what is new."""
        self._see_at(key, SETTLE_S)

    def find(self, keys: Iterable[KeyT]) -> None:
        """Take up those that an earlier daemon has not come to."""
        for key in keys:
            file = self._file_of(key)
            if file is not None and not file.exists():
                self.note(key)

    def put_off(self, key: KeyT) -> None:
        """Leave it alone for a while: somebody is about to wake from it."""
        if self._backlog.current == key or self._backlog.due_at(key) is not None:
            self._see_at(key, REST_S)
        self._backlog.interrupt(key)

    def forget(self, key: KeyT) -> None:
        """Have nothing to do with it any more: it is about to be deleted."""
        self._backlog.forget(key)

    async def verify(self, key: KeyT) -> tuple[CheckedPart, ...]:
        """Read all of it, and compare that with its checksums; without any, they are made.

        None are made of what cannot be read to its end.

        Raises:
            OSError: nothing of it can be looked at.
        """
        found = await self._look(key)
        file = self._file_of(key)
        if file is None:  # It was deleted meanwhile.
            return tuple(_compared(one, None) for one in found)
        try:
            expected = Checksums.from_bytes(file.read_bytes(), self._parts)
        except FileNotFoundError:
            # Only now: they may have been made meanwhile.
            self._write(key, file, found)
            return tuple(_compared(one, None) for one in found)
        except _UNREADABLE as error:
            unreadable = CheckedPart(self._parts[0], file.name, 0, Proof.READABLE, f"unreadable: {error}")
            return (unreadable, *(_compared(one, None) for one in found))
        return tuple(_compared(one, expected) for one in found)

    async def _make(self, key: KeyT) -> None:
        """Make the checksums of a key. Cancelled, or if it fails, there are none yet."""
        try:
            found = await self._look(key)
            file = self._file_of(key)
            if file is not None and not file.exists():
                self._write(key, file, found)
        except OSError as error:
            log.warning("checksums_not_made", of=key, error=str(error))

    def _write(self, key: KeyT, file: Path, found: Iterable[Found]) -> None:
        """Write checksums down, if all was read and what there is twice is the same.

        Raises:
            OSError: the disk refuses.
        """
        sums = {part: {one.sums for one in found if one.part is part} for part in self._parts}
        damage = [one.damage for one in found if one.damage]
        if damage or any(len(of_part) != 1 for of_part in sums.values()):
            log.warning("damage_found", of=key, error=damage[0] if damage else "it differs")
            return
        write_whole(file, Checksums({part: of_part.pop() for part, of_part in sums.items()}).to_bytes())

    def _see_at(self, key: KeyT, after_s: float) -> None:
        self._backlog.see_at(key, time.monotonic() + after_s)


def capture_verifier(folder: Path) -> Verifier[CaptureId]:
    """Return what verifies a folder of captures."""
    return Verifier(
        (Part.MEMORY, Part.DEVICES),
        lambda capture: folder / capture / CHECKSUMS_FILE,
        lambda capture: look_apart(folder / capture),
    )


def _compared(found: Found, expected: Checksums | None) -> CheckedPart:
    proof = Proof.READABLE if expected is None else Proof.CHECKSUMS
    chunk = None if expected is None else first_difference(found.sums, expected.of[found.part])
    damage = found.damage or ("" if chunk is None else "it is not what was stored")
    if expected is None and damage:
        chunk = len(found.sums)
    return CheckedPart(found.part, found.file, found.size_bytes, proof, damage, chunk)


async def look_apart(folder: Path) -> list[Found]:
    """Read a capture in a process of its own, which ends with us, or when this is cancelled.

    Raises:
        OSError: it could not, or the capture is just being deleted.
    """
    return await _apart("capture", folder)


async def look_at_disk_apart(files: Iterable[Path]) -> list[Found]:
    """Read a disk, whose layers are `files`, topmost first, in such a process.

    Raises:
        OSError: as of `look_apart`.
    """
    return await _apart(Part.DISK, *files)


async def _apart(kind: str, *files: Path) -> list[Found]:
    program = [sys.executable, "-P", "-m", "ramet.snapshots.checksums", str(getpid()), kind]
    done = await anyio.run_process([*program, *map(str, files)], check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip()
        raise OSError(None, words.splitlines()[-1] if words else f"it ended with {done.returncode}")
    return [Found.from_dict(raw) for raw in json.loads(done.stdout)]
