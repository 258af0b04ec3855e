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
leads back to Stopped; until its VMM is there, Initializing forbids what Created does. `RestartDue` leads
where StartAsked does, if the instance is to be started again by itself; one that is to be, and is found
unhealthy, stops before. Nothing here looks at a clock, waits, or knows a feature.
"""

from dataclasses import replace
from typing import Final

from ramet.core.health import HealthStatus
from ramet.core.ids import LayerId
from ramet.core.restart import Restarts, RunEnd
from ramet.core.spec import InstanceRecord, InstanceSpec, State
from ramet.core.supervision import judge_restart, may_end_for_health, settled
from ramet.core.volumes import demand_copyable, with_mount, without_mount
from ramet.instance import remedies
from ramet.instance.actions import (
    Action,
    AwaitGuest,
    Boot,
    Copy,
    Destroy,
    DropLayer,
    Fork,
    Interrupt,
    Reach,
    Release,
    ShortenDisk,
    ShutDown,
    Start,
    Suspend,
    Thaw,
    Wake,
    Watch,
)
from ramet.instance.events import (
    ActionFailed,
    AttachAsked,
    Begin,
    BeginCopy,
    BeginFork,
    Booted,
    Completed,
    Copied,
    DeleteAsked,
    DestroyFailed,
    DetachAsked,
    Event,
    Failed,
    Forked,
    Found,
    FoundSilent,
    HealthFound,
    LayerSwitched,
    PoolAsked,
    Ready,
    RestartDue,
    RestoreAsked,
    Rewound,
    SilenceEnded,
    StandbyAsked,
    StartAsked,
    StopAsked,
    Suspended,
    SuspendFailed,
    UpdateAsked,
    VmmExited,
    WakeFailed,
    Woken,
)
from ramet.instance.fleet_types import WrongState

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
        case LayerSwitched(layer, before):
            return _switched(record, layer, before), ()
        case Failed(error, at) if record.state is State.CREATED or is_starting(record):
            failed = replace(record, state=State.STOPPED, state_error=str(error), stopped_at=at)
            return _run_ended(failed, RunEnd.ITSELF), ()
        case Failed(error, at) if record.state is State.INITIALIZING:
            return replace(record, state=State.SHUTDOWN, state_error=str(error)), (ShutDown(),)
        case StartAsked():
            return _start_asked(record, event), (Start(),)
        case RestartDue() | HealthFound():
            return _decide_supervised(record, event)
        case PoolAsked() | UpdateAsked() if record.state in (State.CREATED, State.UNKNOWN):
            raise _wrong(record, "told otherwise", remedies.to_run(record))
        case AttachAsked() | DetachAsked():
            return _with_other_volumes(record, event), ()
        case PoolAsked(size):
            if size:
                demand_copyable(record.spec.volumes)
            return replace(record, spec=replace(record.spec, fork_pool=size)), ()
        case UpdateAsked(changes):
            return replace(record, spec=replace(record.spec, **changes)), ()
        case StandbyAsked() | Suspended() | SuspendFailed() | Rewound():
            return _decide_sleep(record, event)
        case RestoreAsked() | Woken() | WakeFailed():
            return _decide_sleep(record, event)
        case StopAsked():
            if is_about_to_restart(record):
                return replace(record, restarts=replace(record.restarts, end=RunEnd.REQUEST)), ()
            if record.state not in (State.INITIALIZING, State.RUNNING) or is_starting(record):
                raise _wrong(record, "stopped", remedies.to_stop(record))
            return _run_ended(replace(record, state=State.SHUTDOWN), RunEnd.REQUEST), (ShutDown(),)
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
            return _run_ended(stopped, RunEnd.ITSELF), (Release(),)
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
                record,
                state=State.STANDBY,
                capture=capture,
                runtime=None,
                state_error="",
                stopped_at=at,
                restarts=settled(record, at),
            )
            return asleep, (Release(),)
        case SuspendFailed() if record.state is State.PAUSED:
            return replace(record, state=State.RUNNING), ()
        case RestoreAsked() if record.state is State.PAUSED or is_waking(record):
            return record, () if is_waking(record) else (Interrupt(),)
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
                record,
                spec=_put_back(record.spec, spec, has_memory=capture is not None),
                state=state,
                layer=layer,
                capture=capture,
                exit=None,
                state_error="",
                restarts=Restarts(),
                health=None,
            )
            drop = () if record.layer is None else (DropLayer(record.layer),)
            # What `state_error` told may still have something on the host.
            return back, (*drop, Release()) if record.state_error else drop
        case _:
            return record, ()


def is_starting(record: InstanceRecord) -> bool:
    """Tell whether it is being started, from its disk or its stored memory, and has no VMM yet."""
    return record.state is State.INITIALIZING and record.runtime is None


def is_waking(record: InstanceRecord) -> bool:
    """Tell whether it is being started from its stored memory."""
    return is_starting(record) and record.capture is not None


def _start_asked(record: InstanceRecord, asked: StartAsked) -> InstanceRecord:
    if record.becoming is not None and not asked.completes:
        raise _wrong(record, "started before it is made", f"ramet wait {record.name}")
    if record.state is not State.STOPPED or record.layer is None:  # It was never made whole.
        raise _wrong(record, "started", remedies.to_start(record))
    return replace(_starting(record, asked.entrypoint, asked.cmd), restarts=Restarts())


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
        health=None,
    )


def _decide_supervised(
    record: InstanceRecord, event: RestartDue | HealthFound
) -> tuple[InstanceRecord, tuple[Action, ...]]:
    match event:
        case RestartDue(at):
            next_at = judge_restart(record, at).next_at
            if next_at is None or at < next_at:
                raise _wrong(record, "started by itself", "")
            attempted = settled(record, at).attempted(at)
            return replace(_starting(record, None, None), restarts=attempted), (Start(),)
        case HealthFound(status, started_at, at) if (
            record.state is State.RUNNING and record.started_at == started_at
        ):
            told = record if record.health is status else replace(record, health=status)
            if status is HealthStatus.UNHEALTHY and may_end_for_health(record, at):
                return _run_ended(replace(told, state=State.SHUTDOWN), RunEnd.HEALTH), (ShutDown(),)
            return told, ()
        case _:
            return record, ()


def is_about_to_restart(record: InstanceRecord) -> bool:
    """Tell whether its run has ended, or ends for its health, and another is to follow by itself."""
    if record.state is State.SHUTDOWN:
        return record.restarts.end is RunEnd.HEALTH
    return judge_restart(record, record.stopped_at or 0.0).next_at is not None


def _run_ended(record: InstanceRecord, by: RunEnd) -> InstanceRecord:
    return replace(record, restarts=record.restarts.ended(by))


def _put_back(now: InstanceSpec, then: InstanceSpec, *, has_memory: bool) -> InstanceSpec:
    """Return the spec of an instance that is put back to when it was `then`."""
    # These are not of the moment gone back to; nor are its volumes, unless it goes on in memory.
    return replace(
        then,
        fork_pool=now.fork_pool,
        auto_standby=now.auto_standby,
        health_check=now.health_check,
        restart_policy=now.restart_policy,
        expires_at=now.expires_at,
        volumes=then.volumes if has_memory else now.volumes,
    )


def _with_other_volumes(record: InstanceRecord, event: AttachAsked | DetachAsked) -> InstanceRecord:
    """Return the record with a volume more, or less.

    Raises:
        WrongState: it is not stopped, and a guest mounts at its boot only.
        MountTaken, InvalidMount, VolumeWritable: it cannot have the one.
        VolumeNotAttached: it has not the other.
    """
    if record.state is not State.STOPPED:
        raise _wrong(record, "given other volumes", remedies.to_attach(record))
    spec = record.spec
    if isinstance(event, DetachAsked):
        volumes = without_mount(spec.volumes, event.volume, record.name)
    else:
        volumes = with_mount(spec.volumes, event.mount, record.name)
        if spec.fork_pool:
            demand_copyable(volumes)
    return replace(record, spec=replace(spec, volumes=volumes))


def _switched(record: InstanceRecord, layer: LayerId, before: LayerId) -> InstanceRecord:
    if record.runtime is None and record.layer != before:
        return record  # It was put back to a snapshot meanwhile.
    return replace(record, layer=layer)


def _decide_deleting(record: InstanceRecord, event: Event) -> tuple[InstanceRecord, tuple[Action, ...]]:
    match event:
        case DestroyFailed(error):
            return replace(record, state=State.UNKNOWN, is_deleting=False, state_error=str(error)), ()
        case LayerSwitched(layer, before):
            return _switched(record, layer, before), ()
        case (
            PoolAsked()
            | UpdateAsked()
            | AttachAsked()
            | DetachAsked()
            | StartAsked()
            | RestartDue()
            | StandbyAsked()
            | RestoreAsked()
            | Rewound()
            | StopAsked()
            | DeleteAsked()
        ):
            raise WrongState(f"instance {record.name} is being deleted", state=record.state)
        case _:
            return record, ()


def _wrong(record: InstanceRecord, done: str, remedy: str) -> WrongState:
    return WrongState(
        f"{record.name} is {record.state} and cannot be {done}", remedy=remedy, state=record.state
    )
