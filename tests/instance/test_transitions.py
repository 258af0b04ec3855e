"""`step` decides alone, whatever comes in whatever order."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.core.auto_standby import AutoStandby
from ramet.core.errors import Broken
from ramet.core.health import HealthStatus
from ramet.core.ids import CaptureId, InstanceId, LayerId
from ramet.core.restart import RestartPolicy, Restarts, RestartWhen, RunEnd
from ramet.core.spec import (
    Exit,
    InstanceIdentity,
    InstanceRecord,
    InstanceSpec,
    RestorePoint,
    Runtime,
    State,
)
from ramet.instance.actions import (
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
    Begin,
    BeginCopy,
    BeginFork,
    Booted,
    Completed,
    Copied,
    DeleteAsked,
    DestroyFailed,
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
from ramet.instance.transitions import is_starting, is_waking, step

RUNTIME = Runtime(1, 2, "boot")
FORMER = Runtime(1, 1, "boot")  # Its pid has come back.
LAYER = LayerId("layer")
CAPTURE = CaptureId("capture")
POINT = RestorePoint(LAYER, CAPTURE)
UPDATE = UpdateAsked({"auto_standby": AutoStandby(True, 60.0), "expires_at": 9.0})
ALWAYS = RestartPolicy(RestartWhen.ALWAYS, 5.0, 3, 600.0)
ERROR = Broken("it broke")
NEW = InstanceRecord(
    InstanceSpec("demo:1", "sha256:0", "fake", 1, 1, 1),
    InstanceIdentity(InstanceId("i"), "name", 2, "0" * 32, 0.0),
    State.CREATED,
)

ALLOWED: dict[State, set[State]] = {
    State.CREATED: {State.INITIALIZING, State.RUNNING, State.STOPPED, State.STANDBY},
    State.INITIALIZING: {State.RUNNING, State.SHUTDOWN, State.STOPPED, State.STANDBY, State.UNKNOWN},
    State.RUNNING: {State.PAUSED, State.SHUTDOWN, State.STOPPED, State.UNKNOWN},
    State.PAUSED: {State.RUNNING, State.STANDBY, State.SHUTDOWN, State.STOPPED, State.UNKNOWN},
    State.SHUTDOWN: {State.STOPPED, State.UNKNOWN},
    State.STOPPED: {State.INITIALIZING, State.STANDBY, State.SHUTDOWN, State.UNKNOWN},
    State.STANDBY: {State.INITIALIZING, State.STOPPED, State.SHUTDOWN},
    State.UNKNOWN: {State.SHUTDOWN, State.RUNNING, State.STOPPED},  # The latter two when a silence ends.
}
"""Where each state may lead in one step."""

EVENTS: list[Event] = [
    Booted(RUNTIME, LAYER, 1.0),
    Ready(),
    Forked(RUNTIME, LAYER, 1.0),
    Failed(ERROR, 1.0),
    LayerSwitched(LayerId("next"), LAYER),
    Copied(LAYER, CAPTURE, State.RUNNING, 1.0),
    Copied(LAYER, None, State.STOPPED, 1.0),
    Completed(),
    StartAsked(),
    RestartDue(9.0),
    HealthFound(HealthStatus.HEALTHY, 1.0, 2.0),
    HealthFound(HealthStatus.UNHEALTHY, 1.0, 2.0),
    HealthFound(HealthStatus.UNHEALTHY, 3.0, 4.0),
    StandbyAsked(),
    PoolAsked(3),
    UpdateAsked({"restart_policy": ALWAYS}),
    UPDATE,
    Suspended(CAPTURE, 2.0),
    SuspendFailed(ERROR),
    RestoreAsked(),
    Woken(RUNTIME, LayerId("woken"), 3.0),
    WakeFailed(ERROR),
    Rewound(NEW.spec, LAYER, CAPTURE),
    Rewound(NEW.spec, LAYER, None),
    StopAsked(),
    DeleteAsked(),
    VmmExited(Exit(0), "", 2.0),
    VmmExited(None, "it crashed", 2.0),
    VmmExited(None, "it crashed", 2.0, FORMER),
    Found(RUNTIME, LAYER),
    FoundSilent(State.RUNNING),
    SilenceEnded(3, State.RUNNING, Found(RUNTIME, LAYER)),
    DestroyFailed(ERROR),
    ActionFailed(ERROR),
]


def after(*events: Event) -> InstanceRecord:
    record = NEW
    for event in events:
        record, _ = step(record, event)
    return record


RUNNING = after(Begin(), Booted(RUNTIME, LAYER, 1.0), Ready())
STOPPED = after(Booted(RUNTIME, LAYER, 1.0), Ready(), VmmExited(Exit(3), "it crashed", 2.0))
STARTING = step(STOPPED, StartAsked())[0]
PAUSED = step(RUNNING, StandbyAsked())[0]
ASLEEP = step(PAUSED, Suspended(CAPTURE, 2.0))[0]
WAKING = step(ASLEEP, RestoreAsked())[0]
SILENT = replace(RUNNING, state=State.UNKNOWN, state_error="it does not answer")


BEGINNINGS: list[Event] = [Begin(), BeginFork(InstanceId("source")), BeginCopy(POINT)]
ASKED = (
    PoolAsked,
    UpdateAsked,
    StartAsked,
    RestartDue,
    StandbyAsked,
    RestoreAsked,
    Rewound,
    StopAsked,
    DeleteAsked,
)


@given(st.sampled_from(BEGINNINGS), st.lists(st.sampled_from(EVENTS)))
def test_no_order_of_events_leads_off_the_table(first: Event, events: list[Event]) -> None:
    record = NEW
    for event in [first, *events]:
        try:
            changed, actions = step(record, event)
        except WrongState:
            assert isinstance(event, ASKED)  # Only what is asked for can be refused.
            continue
        if changed is record:
            without_change = Begin | BeginFork | BeginCopy | FoundSilent | RestoreAsked
            assert actions == () or isinstance(event, without_change)
            continue
        assert changed.state is record.state or changed.state in ALLOWED[record.state]
        assert changed.generation == record.generation + 1
        spec = record.spec
        if isinstance(event, PoolAsked):
            spec = replace(spec, fork_pool=event.size)
        elif isinstance(event, UpdateAsked):
            spec = replace(spec, **event.changes)
        assert (changed.spec, changed.identity) == (spec, record.identity)
        assert changed.is_deleting <= (changed.state is State.SHUTDOWN)
        assert record.state is State.CREATED or changed.state is not State.CREATED
        assert (changed.runtime is None) or changed.state not in (State.STOPPED, State.STANDBY)
        assert changed.becoming is None or changed.becoming is not changed.state
        if changed.state not in (State.UNKNOWN, State.SHUTDOWN):
            assert (changed.capture is not None) == (changed.state is State.STANDBY or is_waking(changed))
        record = changed


@given(st.lists(st.sampled_from(EVENTS)))
def test_an_instance_is_destroyed_only_when_asked_and_by_one_action_at_a_time(events: list[Event]) -> None:
    record, destructions = RUNNING, 0
    for event in events:
        try:
            record, actions = step(record, event)
        except WrongState:
            continue
        if isinstance(event, DestroyFailed):
            destructions = 0
        found = sum(isinstance(action, Destroy) for action in actions)
        assert not found or isinstance(event, DeleteAsked)
        destructions += found
        assert destructions <= 1


@given(st.lists(st.sampled_from(EVENTS)))
def test_every_instance_that_is_made_can_be_deleted_at_last(events: list[Event]) -> None:
    record = RUNNING
    for event in events:
        try:
            record, _ = step(record, event)
        except WrongState:
            continue
    for however_it_ends in (WakeFailed(ERROR), Failed(ERROR, 9.0)):
        if is_starting(record):
            record, _ = step(record, however_it_ends)
    if not record.is_deleting:
        record, actions = step(record, DeleteAsked())
        assert actions == (Destroy(),)
    assert record.is_deleting


@pytest.mark.parametrize(
    ("record", "event", "state", "actions"),
    [
        (NEW, Begin(), State.CREATED, (Boot(),)),
        (NEW, BeginFork(InstanceId("s")), State.CREATED, (Fork(InstanceId("s")),)),
        (NEW, Booted(RUNTIME, LAYER, 1.0), State.INITIALIZING, (Watch(), AwaitGuest())),
        (NEW, Forked(RUNTIME, LAYER, 1.0), State.RUNNING, (Watch(),)),
        (NEW, Failed(ERROR, 1.0), State.STOPPED, ()),
        (after(Booted(RUNTIME, LAYER, 1.0)), Ready(), State.RUNNING, (ShortenDisk(),)),
        (after(Booted(RUNTIME, LAYER, 1.0)), Failed(ERROR, 1.0), State.SHUTDOWN, (ShutDown(),)),
        (RUNNING, StopAsked(), State.SHUTDOWN, (ShutDown(),)),
        (RUNNING, VmmExited(Exit(3), "", 1.0), State.STOPPED, (Release(),)),
        (RUNNING, DeleteAsked(), State.SHUTDOWN, (Destroy(),)),
        (RUNNING, ActionFailed(ERROR), State.UNKNOWN, ()),
        (RUNNING, Found(RUNTIME, LAYER), State.RUNNING, (Watch(), Thaw())),
        (
            replace(RUNNING, state=State.SHUTDOWN),
            Found(RUNTIME, LAYER),
            State.SHUTDOWN,
            (Watch(), ShutDown()),
        ),
        (
            SILENT,
            FoundSilent(State.RUNNING),
            State.UNKNOWN,
            (Reach(SILENT.generation, State.RUNNING),),
        ),
        (
            SILENT,
            SilenceEnded(SILENT.generation, State.INITIALIZING, Found(RUNTIME, LAYER)),
            State.INITIALIZING,
            (Watch(), Thaw(), AwaitGuest()),
        ),
        (
            SILENT,
            SilenceEnded(SILENT.generation, State.RUNNING, VmmExited(None, "killed", 1.0)),
            State.STOPPED,
            (Release(),),
        ),
        (
            SILENT,
            SilenceEnded(SILENT.generation - 1, State.RUNNING, Found(RUNTIME, LAYER)),
            State.UNKNOWN,
            (),
        ),
        (STOPPED, StartAsked(), State.INITIALIZING, (Start(),)),
        (
            replace(STOPPED, becoming=State.RUNNING),
            StartAsked(completes=True),
            State.INITIALIZING,
            (Start(),),
        ),
        (STARTING, Booted(RUNTIME, LAYER, 3.0), State.INITIALIZING, (Watch(), AwaitGuest())),
        (STARTING, Found(RUNTIME, LAYER), State.INITIALIZING, (Watch(), Thaw(), AwaitGuest())),
        (STARTING, Failed(ERROR, 3.0), State.STOPPED, ()),
        (STARTING, VmmExited(None, "the daemon ended", 3.0), State.STOPPED, (Release(),)),
        (STARTING, VmmExited(None, "of the run before", 3.0, RUNTIME), State.INITIALIZING, ()),
        (RUNNING, VmmExited(None, "of the run before", 3.0, FORMER), State.RUNNING, ()),
        (RUNNING, VmmExited(None, "of this run", 3.0, RUNTIME), State.STOPPED, (Release(),)),
        (STARTING, ActionFailed(ERROR), State.INITIALIZING, ()),
        (NEW, BeginCopy(POINT), State.CREATED, (Copy(POINT, None),)),
        (NEW, Copied(LAYER, CAPTURE, State.RUNNING, 1.0), State.STANDBY, ()),
        (NEW, Copied(LAYER, None, State.STOPPED, 1.0), State.STOPPED, ()),
        (RUNNING, StandbyAsked(), State.PAUSED, (Suspend(),)),
        (PAUSED, Suspended(CAPTURE, 2.0), State.STANDBY, (Release(),)),
        (PAUSED, SuspendFailed(ERROR), State.RUNNING, ()),
        (PAUSED, RestoreAsked(), State.PAUSED, (Interrupt(),)),
        (PAUSED, VmmExited(None, "killed", 2.0), State.STOPPED, (Release(),)),
        (PAUSED, Found(RUNTIME, LAYER), State.RUNNING, (Watch(), Thaw())),
        (ASLEEP, VmmExited(None, "ended", 2.0), State.STANDBY, ()),
        (ASLEEP, ActionFailed(ERROR), State.STANDBY, ()),
        (ASLEEP, RestoreAsked(), State.INITIALIZING, (Wake(),)),
        (ASLEEP, DeleteAsked(), State.SHUTDOWN, (Destroy(),)),
        (ASLEEP, Rewound(NEW.spec, LAYER, None), State.STOPPED, (DropLayer(LAYER),)),
        (STOPPED, Rewound(NEW.spec, LAYER, CAPTURE), State.STANDBY, (DropLayer(LAYER), Release())),
        (
            replace(ASLEEP, state_error="its TAP is still there"),
            Rewound(NEW.spec, LAYER, None),
            State.STOPPED,
            (DropLayer(LAYER), Release()),
        ),
        (WAKING, Woken(RUNTIME, LAYER, 3.0), State.RUNNING, (Watch(), ShortenDisk())),
        (WAKING, WakeFailed(ERROR), State.STANDBY, ()),
        (WAKING, Booted(RUNTIME, LAYER, 3.0), State.INITIALIZING, ()),
        (WAKING, Failed(ERROR, 3.0), State.INITIALIZING, ()),
        (RUNNING, PoolAsked(3), State.RUNNING, ()),
        (ASLEEP, PoolAsked(3), State.STANDBY, ()),
        (RUNNING, UPDATE, State.RUNNING, ()),
        (ASLEEP, UpdateAsked({"auto_standby": None}), State.STANDBY, ()),
        (WAKING, VmmExited(None, "of the run before", 2.0), State.INITIALIZING, ()),
    ],
)
def test_what_an_event_leads_to(
    record: InstanceRecord, event: Event, state: State, actions: tuple[object, ...]
) -> None:
    changed, found = step(record, event)
    assert (changed.state, found) == (state, actions)


@pytest.mark.parametrize("record", [NEW, SILENT, replace(RUNNING, is_deleting=True)])
def test_what_is_made_deleted_or_unknown_gets_no_pool_and_no_policy(record: InstanceRecord) -> None:
    assert step(RUNNING, PoolAsked(3))[0].spec.fork_pool == 3
    assert step(RUNNING, UPDATE)[0].spec.expires_at == 9.0
    for event in (PoolAsked(3), UPDATE):
        with pytest.raises(WrongState):
            step(record, event)


def test_a_start_forgets_how_the_run_before_ended_and_keeps_who_the_instance_is() -> None:
    assert (STOPPED.exit, STOPPED.state_error, STOPPED.stopped_at) == (Exit(3), "it crashed", 2.0)
    assert (STARTING.exit, STARTING.state_error, STARTING.stopped_at) == (None, "", None)
    assert (STARTING.identity, STARTING.layer) == (STOPPED.identity, STOPPED.layer)
    failed, _ = step(STARTING, Failed(ERROR, 3.0))
    assert (failed.state_error, failed.stopped_at, failed.layer) == ("it broke", 3.0, STOPPED.layer)
    assert step(failed, StartAsked())[1] == (Start(),)


def test_what_a_start_replaces_stays_replaced_and_what_it_does_not_name_stays() -> None:
    first, _ = step(STOPPED, StartAsked(entrypoint=("sh", "-c"), cmd=("true",)))
    stopped = replace(first, state=State.STOPPED)
    second, _ = step(stopped, StartAsked(cmd=()))
    assert (second.spec.entrypoint, second.spec.cmd) == (("sh", "-c"), ())


@pytest.mark.parametrize(
    "record", [NEW, RUNNING, STARTING, replace(STOPPED, state=State.UNKNOWN), replace(STOPPED, layer=None)]
)
def test_only_what_is_stopped_and_has_a_disk_can_be_started(record: InstanceRecord) -> None:
    with pytest.raises(WrongState):
        step(record, StartAsked())


@pytest.mark.parametrize(
    ("record", "asked", "message", "remedy"),
    [
        (RUNNING, StartAsked(), "is Running and cannot be started", "boot it anew: ramet restart name"),
        (
            replace(STOPPED, becoming=State.RUNNING),
            StartAsked(),
            "is Stopped and cannot be started before it is made",
            "ramet wait name",
        ),
        (NEW, StartAsked(), "is Created and cannot be started", "ramet wait name --state Running"),
        (
            replace(STOPPED, layer=None),
            StartAsked(),
            "is Stopped and cannot be started",
            "it was never made whole; remove it: ramet rm name",
        ),
        (SILENT, StartAsked(), "is Unknown and cannot be started", "see why: ramet inspect name"),
        (
            STOPPED,
            StopAsked(),
            "is Stopped and cannot be stopped",
            "it takes no memory; remove it with its disk: ramet rm name",
        ),
        (
            step(RUNNING, StopAsked())[0],
            StopAsked(),
            "is Shutdown and cannot be stopped",
            "ramet wait name --state Stopped",
        ),
        (
            STARTING,
            DeleteAsked(),
            "is Initializing and cannot be deleted",
            "ramet wait name --state Running, and then delete it",
        ),
    ],
)
def test_a_refusal_tells_the_command_that_helps(
    record: InstanceRecord, asked: Event, message: str, remedy: str
) -> None:
    with pytest.raises(WrongState) as caught:
        step(record, asked)
    assert (caught.value.message, caught.value.remedy) == (f"name {message}", remedy)


@pytest.mark.parametrize("asked", [StartAsked(), StopAsked(), DeleteAsked()])
def test_an_instance_that_is_being_made_started_or_deleted_refuses_requests(asked: Event) -> None:
    for record in (NEW, STARTING, after(Booted(RUNTIME, LAYER, 1.0), DeleteAsked())):
        with pytest.raises(WrongState):
            step(record, asked)


def test_the_layer_a_capture_leaves_is_kept_even_while_the_instance_is_being_deleted() -> None:
    assert (
        after(Booted(RUNTIME, LAYER, 1.0), DeleteAsked(), LayerSwitched(LayerId("next"), LAYER)).layer
        == "next"
    )


def test_the_layer_a_capture_leaves_is_not_that_of_an_instance_put_back_to_a_snapshot_meanwhile() -> None:
    rewound = step(STOPPED, Rewound(STOPPED.spec, LayerId("snapshot's"), None))[0]
    switched = LayerSwitched(LayerId("next"), LAYER)
    assert step(rewound, switched) == (rewound, ())
    starting = step(rewound, StartAsked())[0]
    assert step(starting, switched) == (starting, ())
    deleting = step(rewound, DeleteAsked())[0]
    assert step(deleting, switched) == (deleting, ())


def test_a_silence_that_ended_takes_its_message_along() -> None:
    answered, _ = step(SILENT, SilenceEnded(SILENT.generation, State.RUNNING, Found(RUNTIME, LAYER)))
    assert answered.state_error == ""
    end = VmmExited(None, "killed", 1.0)
    assert step(SILENT, SilenceEnded(SILENT.generation, State.RUNNING, end))[0].state_error == "killed"


def test_why_an_instance_failed_is_not_overwritten_by_how_its_vmm_ended() -> None:
    record = after(Booted(RUNTIME, LAYER, 1.0), Failed(ERROR, 1.0), VmmExited(None, "killed", 2.0))
    assert record.state_error == "it broke"


def supervised(*events: Event) -> InstanceRecord:
    """Return a running instance that is always started again, after `events`."""
    record = replace(RUNNING, spec=replace(RUNNING.spec, restart_policy=ALWAYS))
    for event in events:
        record, _ = step(record, event)
    return record


ENDED = supervised(VmmExited(Exit(0), "", 10.0))


def test_a_run_that_ended_by_itself_is_followed_by_another_when_its_time_has_come_and_once() -> None:
    with pytest.raises(WrongState):
        step(ENDED, RestartDue(14.9))
    started, actions = step(ENDED, RestartDue(15.0))
    assert (started.state, actions) == (State.INITIALIZING, (Start(),))
    assert started.restarts == Restarts(1, 15.0)
    with pytest.raises(WrongState):
        step(started, RestartDue(99.0))
    failed, _ = step(started, Failed(ERROR, 16.0))
    assert failed.restarts == Restarts(1, 15.0, RunEnd.ITSELF)
    with pytest.raises(WrongState):
        step(failed, RestartDue(25.9))
    assert step(failed, RestartDue(26.0))[0].restarts == Restarts(2, 26.0)


def test_nobody_starts_again_what_somebody_stopped_copied_or_put_back() -> None:
    copied = step(replace(NEW, spec=ENDED.spec), Copied(LAYER, None, State.STOPPED, 1.0))[0]
    for record in (
        supervised(StopAsked(), VmmExited(Exit(0), "", 10.0)),
        step(ENDED, StopAsked())[0],
        step(ENDED, Rewound(ENDED.spec, LAYER, None))[0],
        copied,
    ):
        assert record.state is State.STOPPED
        with pytest.raises(WrongState):
            step(record, RestartDue(1e9))
        started, _ = step(record, StartAsked())
        assert started.restarts == Restarts()


def test_the_unhealthy_are_stopped_and_started_again_if_they_may_be() -> None:
    found = HealthFound(HealthStatus.UNHEALTHY, 1.0, 9.0)
    told, actions = step(RUNNING, found)
    assert (told.state, told.health, actions) == (State.RUNNING, HealthStatus.UNHEALTHY, ())
    assert step(told, found) == (told, ())
    ending, actions = step(supervised(), found)
    assert (ending.state, actions) == (State.SHUTDOWN, (ShutDown(),))
    ended, _ = step(ending, VmmExited(Exit(0), "", 10.0))
    started, _ = step(ended, RestartDue(15.0))
    assert (started.restarts.is_failing_health, started.health) == (True, None)
    stopped, _ = step(step(ending, StopAsked())[0], VmmExited(Exit(0), "", 10.0))
    assert stopped.restarts.end is RunEnd.REQUEST  # Somebody wanted it stopped before it was.


@pytest.mark.parametrize(
    ("record", "started_at"), [(RUNNING, 0.5), (PAUSED, 1.0), (ASLEEP, 1.0), (STOPPED, 1.0), (STARTING, None)]
)
def test_what_is_found_of_another_run_or_of_one_that_does_not_run_says_nothing(
    record: InstanceRecord, started_at: float | None
) -> None:
    assert step(record, HealthFound(HealthStatus.UNHEALTHY, started_at, 9.0)) == (record, ())


def test_how_it_does_is_kept_in_sleep_and_attempts_end_with_a_long_run() -> None:
    tried = replace(supervised(), restarts=Restarts(2, 0.5), health=HealthStatus.HEALTHY)
    short = step(step(tried, StandbyAsked())[0], Suspended(CAPTURE, 600.9))[0]
    assert (short.restarts, short.health) == (Restarts(2, 0.5), HealthStatus.HEALTHY)
    long = step(step(tried, StandbyAsked())[0], Suspended(CAPTURE, 601.0))[0]
    assert long.restarts == Restarts()
    awake = step(step(long, RestoreAsked())[0], Woken(RUNTIME, LAYER, 700.0))[0]
    assert awake.health is HealthStatus.HEALTHY
