"""When checksums are made of stored captures, and when they are compared.

```
captures/<id>/checksums.json     written whole, once; without it nobody has come to it yet
```

They are made when a capture has lain for a while: memory that is woken from at once is spared it. One at a
time is read, in a process of the lowest priority, and whoever wakes from it ends that. A daemon that is
killed leaves all of them or none; the next makes those that are missing.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterable
from os import getpid
from pathlib import Path
from typing import Final

import anyio
import structlog

from ramet.core.ids import CaptureId
from ramet.core.verification import CheckedPart, Part, Proof
from ramet.snapshots.backlog import Backlog
from ramet.snapshots.checksums import CHECKSUMS_FILE, Checksums, Found, first_difference
from ramet.snapshots.compressor import Compressor
from ramet.store.paths import write_whole

SETTLE_S: Final = 5.0
"""How long a capture lies before its checksums are made."""
REST_S: Final = 60.0
"""How long one is left alone that somebody wakes from."""
_UNREADABLE: Final = (OSError, ValueError, TypeError, KeyError, RecursionError)

log = structlog.get_logger(__name__)


class Verifier:
    """Makes and compares the checksums of a folder of captures. For the event loop's thread."""

    def __init__(self, folder: Path, compressor: Compressor) -> None:
        self._folder, self._compressor = folder, compressor
        self._backlog = Backlog()

    async def run(self) -> None:
        """Make what is due, until cancelled."""
        await self._backlog.run(self._make)

    def note(self, capture: CaptureId) -> None:
        """Have checksums be made of a new capture."""
        self._see_at(capture, SETTLE_S)

    def find(self, captures: Iterable[CaptureId]) -> None:
        """Take up those that an earlier daemon has not come to."""
        for capture in captures:
            if not (self._folder / capture / CHECKSUMS_FILE).exists():
                self.note(capture)

    def put_off(self, capture: CaptureId) -> None:
        """Leave a capture alone for a while: somebody is about to wake from it."""
        if self._backlog.current == capture or self._backlog.due_at(capture) is not None:
            self._see_at(capture, REST_S)
        self._backlog.interrupt(capture)

    def forget(self, capture: CaptureId) -> None:
        """Have nothing to do with a capture any more: it is about to be deleted."""
        self._backlog.forget(capture)

    async def verify(self, capture: CaptureId) -> tuple[CheckedPart, ...]:
        """Read a whole capture, and compare it with its checksums; without any, they are made.

        None are made of what cannot be read to its end.

        Raises:
            OSError: nothing of it can be looked at.
        """
        file = self._folder / capture / CHECKSUMS_FILE
        with self._compressor.left_alone(capture):
            found = await look_apart(file.parent)
        try:
            expected = Checksums.from_bytes(file.read_bytes())
        except FileNotFoundError:
            # Only now: they may have been made meanwhile.
            self._write(capture, found)
            return tuple(_compared(one, None) for one in found)
        except _UNREADABLE as error:
            unreadable = CheckedPart(Part.MEMORY, CHECKSUMS_FILE, 0, Proof.READABLE, f"unreadable: {error}")
            return (unreadable, *(_compared(one, None) for one in found))
        return tuple(_compared(one, expected) for one in found)

    async def _make(self, capture: CaptureId) -> None:
        """Make the checksums of a capture. Cancelled, or if it fails, there are none yet."""
        try:
            found = await look_apart(self._folder / capture)
            if not (self._folder / capture / CHECKSUMS_FILE).exists():
                self._write(capture, found)
        except OSError as error:
            log.warning("checksums_not_made", capture=capture, error=str(error))

    def _write(self, capture: CaptureId, found: Iterable[Found]) -> None:
        """Write checksums down, if all was read and what there is twice is the same.

        Raises:
            OSError: the disk refuses.
        """
        sums = {part: {one.sums for one in found if one.part is part} for part in (Part.MEMORY, Part.DEVICES)}
        damage = [one.damage for one in found if one.damage]
        if damage or any(len(of_part) != 1 for of_part in sums.values()):
            log.warning("damaged_capture_found", capture=capture, error=damage[0] if damage else "it differs")
            return
        (memory,), (devices,) = sums[Part.MEMORY], sums[Part.DEVICES]
        write_whole(self._folder / capture / CHECKSUMS_FILE, Checksums(memory, devices).to_bytes())

    def _see_at(self, capture: CaptureId, after_s: float) -> None:
        self._backlog.see_at(capture, time.monotonic() + after_s)


def _compared(found: Found, expected: Checksums | None) -> CheckedPart:
    proof = Proof.READABLE if expected is None else Proof.CHECKSUMS
    chunk = None if expected is None else first_difference(found.sums, expected.of(found.part))
    damage = found.damage or ("" if chunk is None else "it is not what was stored")
    if expected is None and damage:
        chunk = len(found.sums)
    return CheckedPart(found.part, found.file, found.size_bytes, proof, damage, chunk)


async def look_apart(folder: Path) -> list[Found]:
    """Read a capture in a process of its own, which ends with us, or when this is cancelled.

    Raises:
        OSError: it could not, or the capture is just being deleted.
    """
    command = [sys.executable, "-P", "-m", "ramet.snapshots.checksums", str(folder), str(getpid())]
    done = await anyio.run_process(command, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip()
        raise OSError(None, words.splitlines()[-1] if words else f"it ended with {done.returncode}")
    return [Found.from_dict(raw) for raw in json.loads(done.stdout)]
