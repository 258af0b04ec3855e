"""What the API is made of; the daemon passes the real ones, tests a stand-in."""

from dataclasses import dataclass

from ramet.api.facts import HostFacts
from ramet.api.idempotency import KeptAnswers
from ramet.api.ports import (
    CatalogPort,
    FleetPort,
    IdlePort,
    ReclaimPort,
    ResourcesPort,
    SchedulesPort,
    SnapshotsPort,
    VolumesPort,
)
from ramet.instance.held_exec import HeldExecs


@dataclass(frozen=True, slots=True)
class Parts:
    """The things that calls are about; who does things by themselves; and what is remembered between calls.

    Attributes:
        idle: who has instances sleep.
        schedules: who takes snapshots of them.
        reclaims: who takes memory back.
        answers: what requests that may be sent again were answered.
        execs: the commands whose clients may leave.
    """

    facts: HostFacts
    fleet: FleetPort
    images: CatalogPort
    snapshots: SnapshotsPort
    volumes: VolumesPort
    resources: ResourcesPort
    idle: IdlePort
    schedules: SchedulesPort
    reclaims: ReclaimPort
    answers: KeptAnswers
    execs: HeldExecs
