"""What a named snapshot is: an instance at one instant, kept for as long as somebody wants it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Self

from ramet.core.ids import CaptureId, InstanceId, LayerId, SnapshotId
from ramet.core.snapshot_schedule import ScheduledRun
from ramet.core.spec import InstanceSpec, RestorePoint


class SnapshotKind(StrEnum):
    """What of an instance a snapshot holds, as the API names it."""

    STANDBY = "Standby"  # Memory and disk.
    STOPPED = "Stopped"  # The disk.


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """One snapshot. It needs its source no more.

    `name` is None or unique among those of its source; `created_at` Unix seconds; `memory_bytes` what of the
    guest's memory takes room on the disk, 0 without memory; `disk_bytes` what its layers take, also
    those that others stand on; `fork_pool` how many children are made ahead of its next forks; `run` which
    run of a schedule took it, None: somebody did.
    """

    id: SnapshotId
    name: str | None
    kind: SnapshotKind
    source: InstanceId
    source_name: str
    spec: InstanceSpec
    point: RestorePoint
    created_at: float
    memory_bytes: int
    disk_bytes: int
    tags: Mapping[str, str] = field(default_factory=dict)
    fork_pool: int = 0
    run: ScheduledRun | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote.

        Raises:
            ValueError, TypeError, KeyError: it was not.
        """
        raw = json.loads(text)
        raw["kind"] = SnapshotKind(raw["kind"])
        raw["spec"] = InstanceSpec.from_dict(raw["spec"])
        point = raw["point"]
        raw["point"] = RestorePoint(LayerId(point["layer"]), point["capture"] and CaptureId(point["capture"]))
        run = raw.get("run")
        raw["run"] = None if run is None else ScheduledRun(**run)
        return cls(**raw)
