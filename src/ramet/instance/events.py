"""What can happen to an instance: what was asked, and what came of it.

Events carry the time at which they happened, in Unix seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ramet.core.compression import NOT_SAID, CompressionAsk
from ramet.core.errors import RametError
from ramet.core.health import HealthStatus
from ramet.core.ids import CaptureId, InstanceId, LayerId, VolumeId
from ramet.core.spec import Exit, InstanceSpec, RestorePoint, Runtime, SpecChanges, State
from ramet.core.volumes import VolumeMount


@dataclass(frozen=True, slots=True)
class Begin:
    """The instance has just been minted: boot it."""


@dataclass(frozen=True, slots=True)
class BeginFork:
    """The instance has just been minted: make it a child of the running `source`."""

    source: InstanceId


@dataclass(frozen=True, slots=True)
class BeginCopy:
    """The instance has just been minted: have it stand where `point` does.

    Where it is `becoming` something, that is only the way there.
    """

    point: RestorePoint
    becoming: State | None = None


@dataclass(frozen=True, slots=True)
class Copied:
    """It has a disk of its own over that of a restore point, and sleeps in `capture` or is stopped."""

    layer: LayerId
    capture: CaptureId | None
    becoming: State | None
    at: float


@dataclass(frozen=True, slots=True)
class Completed:
    """Whoever asked for it takes it as it is: it ended by itself on the way."""


@dataclass(frozen=True, slots=True)
class Booted:
    """Its VMM runs; the guest does not answer yet."""

    runtime: Runtime
    layer: LayerId
    at: float


@dataclass(frozen=True, slots=True)
class Ready:
    """The guest answered: its workload has been started."""


@dataclass(frozen=True, slots=True)
class Forked:
    """The child runs and has taken its own identity."""

    runtime: Runtime
    layer: LayerId
    at: float


@dataclass(frozen=True, slots=True)
class Failed:
    """It could not be made, or its guest never answered. The host holds nothing of it any more."""

    error: RametError
    at: float


@dataclass(frozen=True, slots=True)
class LayerSwitched:
    """A capture froze its disk's top layer, `before`; it writes to `layer` now."""

    layer: LayerId
    before: LayerId


@dataclass(frozen=True, slots=True)
class StartAsked:
    """Somebody wants it to boot again from its disk; what is not None replaces that part of its spec.

    It `completes` a copy that is to run: nobody else starts one that is being made.
    """

    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    completes: bool = False


@dataclass(frozen=True, slots=True)
class RestartDue:
    """Its restart policy has it boot again, now."""

    at: float


@dataclass(frozen=True, slots=True)
class HealthFound:
    """Its check has found how it does, in the run that began at `started_at`."""

    status: HealthStatus
    started_at: float | None
    at: float


@dataclass(frozen=True, slots=True)
class PoolAsked:
    """Somebody wants `size` children of it made ahead of the next fork."""

    size: int


@dataclass(frozen=True, slots=True)
class UpdateAsked:
    """Somebody wants these parts of its spec to be others from now on."""

    changes: SpecChanges


@dataclass(frozen=True, slots=True)
class AttachAsked:
    """Somebody wants it to have a further volume from its next boot on."""

    mount: VolumeMount


@dataclass(frozen=True, slots=True)
class DetachAsked:
    """Somebody wants it to have a volume no more."""

    volume: VolumeId


@dataclass(frozen=True, slots=True)
class StandbyAsked:
    """Somebody wants its memory stored, and compressed or not, and its VMM gone."""

    compression: CompressionAsk = NOT_SAID


@dataclass(frozen=True, slots=True)
class Suspended:
    """Its memory is stored in `capture`; its VMM stands still and is about to end."""

    capture: CaptureId
    at: float


@dataclass(frozen=True, slots=True)
class SuspendFailed:
    """Its memory could not be stored: it runs on."""

    error: RametError


@dataclass(frozen=True, slots=True)
class RestoreAsked:
    """Somebody wants it to wake; or, of one that is just being put to sleep, to go on."""


@dataclass(frozen=True, slots=True)
class Woken:
    """It runs again, from its stored memory, and writes to `layer`."""

    runtime: Runtime
    layer: LayerId
    at: float


@dataclass(frozen=True, slots=True)
class WakeFailed:
    """It did not wake: it sleeps, as before."""

    error: RametError


@dataclass(frozen=True, slots=True)
class Rewound:
    """Its disk and its memory are to be those of an earlier point from now on; its spec was `spec` then."""

    spec: InstanceSpec
    layer: LayerId
    capture: CaptureId | None


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Somebody wants it to stop."""


@dataclass(frozen=True, slots=True)
class DeleteAsked:
    """Somebody wants it gone, with all of its data."""


@dataclass(frozen=True, slots=True)
class VmmExited:
    """Its VMM, `runtime`, is gone; None: the record's. `exit` is how the workload ended, if that was told."""

    exit: Exit | None
    reason: str
    at: float
    runtime: Runtime | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """After a restart of the daemon its VMM was found alive and taken hold of."""

    runtime: Runtime
    layer: LayerId


@dataclass(frozen=True, slots=True)
class FoundSilent:
    """After a restart of the daemon its VMM was found alive and not answering; until then it was `before`."""

    before: State


@dataclass(frozen=True, slots=True)
class SilenceEnded:
    """A VMM that did not answer has been taken hold of, or is gone; told to a record of `generation` only."""

    generation: int
    before: State
    outcome: Found | VmmExited


@dataclass(frozen=True, slots=True)
class DestroyFailed:
    """Part of it could not be removed; it stays held and visible."""

    error: RametError


@dataclass(frozen=True, slots=True)
class ActionFailed:
    """What had to be done for it was not done; where it stands now, nobody knows."""

    error: RametError


Event = (
    Begin
    | BeginFork
    | BeginCopy
    | Copied
    | Completed
    | Booted
    | Ready
    | Forked
    | Failed
    | LayerSwitched
    | StartAsked
    | RestartDue
    | HealthFound
    | PoolAsked
    | UpdateAsked
    | AttachAsked
    | DetachAsked
    | StandbyAsked
    | Suspended
    | SuspendFailed
    | RestoreAsked
    | Woken
    | WakeFailed
    | Rewound
    | StopAsked
    | DeleteAsked
    | VmmExited
    | Found
    | FoundSilent
    | SilenceEnded
    | DestroyFailed
    | ActionFailed
)

Emit = Callable[[Event], None]
"""Tells an instance what happened to it."""
