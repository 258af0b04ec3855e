"""What is told of a host's resources: `GET /resources`."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ramet.admission.ledger import Source


@dataclass(frozen=True, slots=True)
class Line:
    """One resource. `capacity` and `limit` None: nobody knows how much there is, and all is admitted."""

    capacity: int | None
    limit: int | None
    allocated: int
    ratio: float
    source: Source

    @property
    def available(self) -> int | None:
        """How much is free; nothing, where more runs than is admitted now."""
        return None if self.limit is None else max(0, self.limit - self.allocated)


@dataclass(frozen=True, slots=True)
class HostReport:
    """How full a host is: vCPUs, bytes, bytes per second, endpoints of the bridge.

    `capture_memory_bytes` is in `memory`, too. `tap_count`: TAPs there are, of running instances.
    """

    cpu: Line
    memory: Line
    disk: Line
    network: Line
    disk_io: Line
    endpoints: Line
    capture_count: int
    capture_memory_bytes: int
    tap_count: int


@dataclass(frozen=True, slots=True)
class Usage:
    """What one instance uses of the host, as its VMM and its TAP tell; all 0 while it has none.

    `cpu_s`: processor time since the VMM started. `received_bytes` came to the guest, `sent_bytes` from it.
    """

    cpu_s: float = 0.0
    resident_bytes: int = 0
    virtual_bytes: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class DiskUse:
    """What the data folder's files really take, in bytes of allocated blocks."""

    image_bytes: int
    oci_cache_bytes: int
    volume_bytes: int
    overlay_bytes: int


def allocated_bytes(folder: Path) -> int:
    """Return the bytes of the blocks that the files in `folder` take, at any depth; 0 if there is none.

    What comes and goes meanwhile is counted or not. Blocks.
    """
    return sum(_blocks(folder)) * 512  # st_blocks counts these, whatever a block of the file system is.


def _blocks(folder: Path) -> Iterator[int]:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    if entry.is_dir(follow_symlinks=False):
                        yield from _blocks(Path(entry.path))
                    else:
                        yield entry.stat(follow_symlinks=False).st_blocks
                except FileNotFoundError:
                    continue
    except FileNotFoundError:
        return
