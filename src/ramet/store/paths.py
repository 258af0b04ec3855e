"""Where everything lies in the data folder.

```
DATA/
  lock                     held by the one daemon that owns the folder
  state.db                 records and journal (SQLite)
  answers.db               see ramet.store.answers
  images/                  see ramet.images.catalog
  kits/                    kernels and initramfs, see ramet.boot.kit
  layers/                  disk layers, see ramet.disks.layers
  captures/                stored memory, see ramet.snapshots.store
  snapshots/               named snapshots, see ramet.snapshots.catalog
  schedules/               when they are taken, see ramet.snapshots.schedules
  volumes/                 see ramet.volumes.catalog
  pagers/                  see ramet.pager.supervisor; not there without
  reclaim.json             see ramet.store.holds
  idle.json                see ramet.store.idleness; there while no daemon is
  unused-images.json       see ramet.store.unused; not there if images stay
  instances/<id>/          spec.json, config.img, logs (ramet.logs.rotation), sockets
```
"""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from ramet.core.errors import Conflict
from ramet.core.ids import InstanceId
from ramet.linux.plain_file import create_plain

PART_SUFFIX: Final = ".part"
LOCK_WAIT_S: Final = 0.5
_LOCK_POLL_S: Final = 0.01


class FolderInUse(Conflict):
    """Another daemon owns this data folder."""

    code = "data_folder_in_use"


class DataFolder:
    """The data folder, owned while this object is open.

    Raises, on construction:
        FolderInUse: another daemon has it.
        OSError: it cannot be made or written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.database = self.root / "state.db"
        self.answers = self.root / "answers.db"
        self.images = self.root / "images"
        self.kits = self.root / "kits"
        self.layers = self.root / "layers"
        self.captures = self.root / "captures"
        self.snapshots = self.root / "snapshots"
        self.schedules = self.root / "schedules"
        self.volumes = self.root / "volumes"
        self.pagers = self.root / "pagers"
        self.reclaim = self.root / "reclaim.json"
        self.idle = self.root / "idle.json"
        self.unused_images = self.root / "unused-images.json"
        self.instances = self.root / "instances"
        for folder in (
            self.images,
            self.kits,
            self.layers,
            self.captures,
            self.snapshots,
            self.schedules,
            self.volumes,
            self.instances,
        ):
            folder.mkdir(exist_ok=True, mode=0o700)
        self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(self._lock)
        except BlockingIOError:
            os.close(self._lock)
            raise FolderInUse(
                f"{self.root} belongs to a running daemon", remedy="stop it, or choose another --data-dir"
            ) from None

    def instance(self, instance: InstanceId) -> Path:
        """Return the folder of one instance, which need not exist."""
        return self.instances / instance

    def close(self) -> None:
        os.close(self._lock)


def _lock(fd: int) -> None:
    """Lock an open file for us alone.

    A daemon that was killed while it started a VMM leaves the lock to that process until it has become the
    VMM: milliseconds, after which it can be found.

    Raises:
        BlockingIOError: somebody else has it, and keeps it.
    """
    until = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
        time.sleep(_LOCK_POLL_S)


def write_whole(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write `path` so that it is there as a whole or not at all; with `durable`, past a power cut too.

    Killed in the middle, it leaves a file with PART_SUFFIX. One that somebody else has left under that name
    leads nowhere.

    Raises:
        OSError: the disk refuses; what was there before is there.
    """
    part = path.with_name(path.name + PART_SUFFIX)
    try:
        with open(create_plain(part), "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        part.rename(path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in `folder` outlive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
