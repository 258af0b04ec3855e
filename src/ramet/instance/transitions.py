"""What an instance does next: a pure function, and the only code that makes a state.

```
            Begin            Booted             Ready
 (minted) --------> Created -------> Initializing -----> Running --.
                       |  Forked                          ^  |     | StopAsked
                       '----------------------------------'  |     v
                       | Failed                  VmmExited   |  Shutdown
                       v                                     v     | VmmExited
                    Stopped <--------------------------------+<----'
                       | StartAsked
                       v                 Booted
                    Initializing, without a VMM ---> Initializing

            StandbyAsked         Suspended            RestoreAsked                        Woken
    Running ----------> Paused -----------> Standby -------------> Initializing, asleep -------> Running
       ^  SuspendFailed,  |                    ^      WakeFailed        |
       '------------------'                    '------------------------'
           Interrupted
```

`DeleteAsked` leads from every state but Created to Shutdown and ends with the instance gone. Events carry the
time at which they happened. A copy of a restore point is minted into Stopped or Standby by `Copied`, and
`Rewound` puts an instance in one of these two back to an earlier point. `ActionFailed` leads from every state
but Created, Standby and those that have no VMM yet to Unknown, where an instance can only be deleted. One
whose VMM does not answer a daemon that comes back is Unknown too, until it does or ends. A start that fails
leads back to Stopped; until its VMM is there, Initializing forbids what Created does. Nothing here looks at a
clock, waits, or knows a feature.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from ramet.core.compression import NOT_SAID, CompressionAsk
from ramet.core.errors import RametError
from ramet.core.ids import CaptureId, InstanceId, LayerId
from ramet.core.spec import Exit, InstanceRecord, InstanceSpec, RestorePoint, Runtime, State
from ramet.instance import remedies
from ramet.instance.fleet_types import WrongState

# Events: what was asked, and what happened.


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
    """A capture froze its disk's top layer; it writes to `layer` now."""

    layer: LayerId


@dataclass(frozen=True, slots=True)
class StartAsked:
    """Somebody wants it to boot again from its disk; what is not None replaces that part of its spec."""

    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None


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


# Actions: what has to be done about it.


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

_ALIVE: Final = frozenset({State.INITIALIZING, State.RUNNING, State.PAUSED, State.SHUTDOWN})


def step(record: InstanceRecord, event: Event) -> tuple[InstanceRecord, tuple[Action, ...]]:
    """Return the record after `event`, its generation counted up, and what is to be done.

    An event that says nothing new (the guest answered, but the VMM has ended meanwhile) changes nothing.

    Raises:
        WrongState: `event` asks for what this state forbids.
    """
    changed, actions = _decide(record, event)
    if changed is record:
        return record, actions
    becoming = None if changed.becoming is changed.state else changed.becoming
    return replace(changed, becoming=becoming, generation=record.generation + 1), actions


def _decide(record: InstanceRecord, event: Event) -> tuple[InstanceRecord, tuple[Action, ...]]:
    if record.is_deleting:
        return _decide_deleting(record, event)
    if is_waking(record) and isinstance(event, Booted | Ready | Failed | Found):
        return record, ()  # Of a run before it slept.
    match event:
        case Begin() | BeginFork() | BeginCopy() | Copied() | Completed() | Booted() | Forked():
            return _decide_making(record, event)
        case Ready() if record.state is State.INITIALIZING:
            return replace(record, state=State.RUNNING), (ShortenDisk(),)
        case LayerSwitched(layer):
            return replace(record, layer=layer), ()
        case Failed(error, at) if record.state is State.CREATED or is_starting(record):
            return replace(record, state=State.STOPPED, state_error=str(error), stopped_at=at), ()
        case Failed(error, at) if record.state is State.INITIALIZING:
            return replace(record, state=State.SHUTDOWN, state_error=str(error)), (ShutDown(),)
        case StartAsked(entrypoint, cmd):
            if record.state is not State.STOPPED or record.layer is None:  # It was never made whole.
                raise _wrong(record, "started", remedies.to_start(record))
            return _starting(record, entrypoint, cmd), (Start(),)
        case StandbyAsked() | Suspended() | SuspendFailed() | Rewound():
            return _decide_sleep(record, event)
        case RestoreAsked() | Woken() | WakeFailed():
            return _decide_sleep(record, event)
        case StopAsked():
            if record.state not in (State.INITIALIZING, State.RUNNING) or is_starting(record):
                raise _wrong(record, "stopped", remedies.to_stop(record))
            return replace(record, state=State.SHUTDOWN), (ShutDown(),)
        case DeleteAsked():
            if record.state is State.CREATED or is_starting(record):
                raise _wrong(record, "deleted", remedies.to_delete(record))
            return replace(record, state=State.SHUTDOWN, is_deleting=True), (Destroy(),)
        case VmmExited(runtime=runtime) if is_waking(record) or not record.is_run_by(runtime):
            return record, ()  # Of the run before: it was ended when its memory had been stored.
        case VmmExited(end, reason, at) if record.state in _ALIVE:
            stopped = replace(
                record,
                state=State.STOPPED,
                runtime=None,
                exit=end,
                state_error=record.state_error or reason,
                stopped_at=at,
            )
            return stopped, (Release(),)
        case ActionFailed() if is_starting(record):
            return record, ()  # Of the run before; what it leaves in the way fails the start.
        case ActionFailed(error) if record.state is State.STANDBY:
            return replace(record, state_error=str(error)), ()  # It can still wake, which tries again.
        case ActionFailed(error) if record.state is not State.CREATED:
            return replace(record, state=State.UNKNOWN, state_error=str(error)), ()
        case Found() | FoundSilent() | SilenceEnded():
            return _decide_found(record, event)
        case _:
            return record, ()


def _decide_making(record: InstanceRecord, event: Event) -> tuple[InstanceRecord, tuple[Action, ...]]:
    match event:
        case Begin():
            return record, (Boot(),)
        case BeginFork(source):
            return record, (Fork(source),)
        case BeginCopy(point, becoming):
            return record, (Copy(point, becoming),)
        case Copied(layer, capture, becoming, at) if record.state is State.CREATED:
            copied = replace(
                record,
                state=State.STOPPED if capture is None else State.STANDBY,
                layer=layer,
                capture=capture,
                becoming=becoming,
                stopped_at=at,
            )
            return copied, ()
        case Completed() if record.becoming is not None:
            return replace(record, becoming=None), ()
        case Booted(runtime, layer, at) if record.state is State.CREATED or is_starting(record):
            booted = replace(record, state=State.INITIALIZING, runtime=runtime, layer=layer, started_at=at)
            return booted, (Watch(), AwaitGuest())
        case Forked(runtime, layer, at) if record.state is State.CREATED:
            forked = replace(record, state=State.RUNNING, runtime=runtime, layer=layer, started_at=at)
            return forked, (Watch(),)
        case _:
            return record, ()


def _decide_found(record: InstanceRecord, event: Event) -> tuple[InstanceRecord, tuple[Action, ...]]:
    match event:
        case Found(runtime, layer) if record.state in _ALIVE:
            found = replace(record, runtime=runtime, layer=layer)
            if record.state is State.SHUTDOWN:
                return found, (Watch(), ShutDown())
            if record.state is State.PAUSED:  # It was being put to sleep, and goes on.
                found = replace(found, state=State.RUNNING)
            waiting = (AwaitGuest(),) if record.state is State.INITIALIZING else ()
            return found, (Watch(), Thaw(), *waiting)
        case FoundSilent(before) if record.state is State.UNKNOWN:
            return record, (Reach(record.generation, before),)
        case SilenceEnded(generation, before, outcome) if (
            record.state is State.UNKNOWN and record.generation == generation
        ):
            return _decide(replace(record, state=before, state_error=""), outcome)
        case _:
            return record, ()


def _decide_sleep(record: InstanceRecord, event: Event) -> tuple[InstanceRecord, tuple[Action, ...]]:
    match event:
        case StandbyAsked(compression):
            if record.state is not State.RUNNING:
                raise _wrong(record, "put to standby", remedies.to_run(record))
            return replace(record, state=State.PAUSED), (Suspend(compression),)
        case Suspended(capture, at) if record.state is State.PAUSED:
            asleep = replace(
                record, state=State.STANDBY, capture=capture, runtime=None, state_error="", stopped_at=at
            )
            return asleep, (Release(),)
        case SuspendFailed() if record.state is State.PAUSED:
            return replace(record, state=State.RUNNING), ()
        case RestoreAsked() if record.state is State.PAUSED:
            return record, (Interrupt(),)
        case RestoreAsked():
            if record.state is not State.STANDBY:
                raise _wrong(record, "restored", remedies.to_restore(record))
            # What `state_error` tells may have left something in the way.
            return replace(record, state=State.INITIALIZING), (Wake(),)
        case Woken(runtime, layer, at) if is_waking(record):
            awake = replace(
                record,
                state=State.RUNNING,
                runtime=runtime,
                layer=layer,
                capture=None,
                state_error="",
                started_at=at,
                stopped_at=None,
            )
            return awake, (Watch(), ShortenDisk())
        case WakeFailed(error) if is_waking(record):
            return replace(record, state=State.STANDBY, state_error=str(error)), ()
        case Rewound(spec, layer, capture):
            if record.state not in (State.STOPPED, State.STANDBY):
                raise _wrong(record, "put back to a snapshot", remedies.to_rewind(record))
            state = State.STOPPED if capture is None else State.STANDBY
            back = replace(
                record, spec=spec, state=state, layer=layer, capture=capture, exit=None, state_error=""
            )
            return back, () if record.layer is None else (DropLayer(record.layer),)
        case _:
            return record, ()


def is_starting(record: InstanceRecord) -> bool:
    """Tell whether it is being started, from its disk or its stored memory, and has no VMM yet."""
    return record.state is State.INITIALIZING and record.runtime is None


def is_waking(record: InstanceRecord) -> bool:
    """Tell whether it is being started from its stored memory."""
    return is_starting(record) and record.capture is not None


def _starting(
    record: InstanceRecord, entrypoint: tuple[str, ...] | None, cmd: tuple[str, ...] | None
) -> InstanceRecord:
    spec = record.spec
    if entrypoint is not None:
        spec = replace(spec, entrypoint=entrypoint)
    if cmd is not None:
        spec = replace(spec, cmd=cmd)
    return replace(
        record,
        spec=spec,
        state=State.INITIALIZING,
        exit=None,
        state_error="",
        started_at=None,
        stopped_at=None,
    )


def _decide_deleting(record: InstanceRecord, event: Event) -> tuple[InstanceRecord, tuple[Action, ...]]:
    match event:
        case DestroyFailed(error):
            return replace(record, state=State.UNKNOWN, is_deleting=False, state_error=str(error)), ()
        case LayerSwitched(layer):
            return replace(record, layer=layer), ()
        case StartAsked() | StandbyAsked() | RestoreAsked() | Rewound() | StopAsked() | DeleteAsked():
            raise WrongState(f"instance {record.name} is being deleted", state=record.state)
        case _:
            return record, ()


def _wrong(record: InstanceRecord, done: str, remedy: str) -> WrongState:
    return WrongState(
        f"{record.name} is {record.state} and cannot be {done}", remedy=remedy, state=record.state
    )


Emit = Callable[[Event], None]
