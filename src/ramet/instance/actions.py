"""What has to be done for an instance: decided by `transitions.step`, carried out by the effects."""

from dataclasses import dataclass

from ramet.core.compression import NOT_SAID, CompressionAsk
from ramet.core.ids import InstanceId, LayerId
from ramet.core.spec import RestorePoint, State


@dataclass(frozen=True, slots=True)
class Boot:
    """Make its disk, endpoint and VMM. Ends in Booted or Failed."""


@dataclass(frozen=True, slots=True)
class Fork:
    """Make it a child of `source`. Ends in Forked or Failed."""

    source: InstanceId


@dataclass(frozen=True, slots=True)
class Start:
    """Boot it again from the disk it has. Ends in Booted or Failed, its disk untouched by us."""


@dataclass(frozen=True, slots=True)
class Copy:
    """Give it a disk over that of `point`, and that memory. Ends in Copied or Failed."""

    point: RestorePoint
    becoming: State | None


@dataclass(frozen=True, slots=True)
class Suspend:
    """Store its memory and end its VMM. Ends in Suspended or SuspendFailed."""

    compression: CompressionAsk = NOT_SAID


@dataclass(frozen=True, slots=True)
class Interrupt:
    """Have a `Suspend` give up, if it still can. Has no outcome of its own."""


@dataclass(frozen=True, slots=True)
class Wake:
    """Start a VMM from its stored memory. Ends in Woken, or in WakeFailed with nothing changed."""


@dataclass(frozen=True, slots=True)
class DropLayer:
    """Give up a disk layer that it was rewound from. Has no outcome."""

    layer: LayerId


@dataclass(frozen=True, slots=True)
class ShortenDisk:
    """Draw the layers of its disk together, where sleeps and copies have made many. Has no outcome."""


@dataclass(frozen=True, slots=True)
class Thaw:
    """Let its workload run, if a capture that nobody ended left it standing. Has no outcome."""


@dataclass(frozen=True, slots=True)
class AwaitGuest:
    """Wait for the guest's first answer. Ends in Ready, or is overtaken by VmmExited; or Failed."""


@dataclass(frozen=True, slots=True)
class Watch:
    """Wait for the end of the VMM, as long as the daemon lives. Ends in VmmExited."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Wait until a silent VMM answers or is gone. Ends in SilenceEnded, with these two members."""

    generation: int
    before: State


@dataclass(frozen=True, slots=True)
class ShutDown:
    """Ask the guest to power off, and end the VMM if it does not. Ends in VmmExited, by Watch."""


@dataclass(frozen=True, slots=True)
class Release:
    """Give back what only a running instance needs."""


@dataclass(frozen=True, slots=True)
class Destroy:
    """Remove all of it from the host. Ends with the instance gone, or in DestroyFailed."""


Action = (
    Boot
    | Fork
    | Copy
    | Start
    | Suspend
    | Interrupt
    | Wake
    | DropLayer
    | ShortenDisk
    | Thaw
    | AwaitGuest
    | Watch
    | Reach
    | ShutDown
    | Release
    | Destroy
)
