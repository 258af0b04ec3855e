"""Volumes are given and taken while an instance is stopped, and go back with its memory only."""

from dataclasses import replace

import pytest

from ramet.core.errors import Conflict, NotFound
from ramet.core.ids import CaptureId, InstanceId, LayerId, VolumeId
from ramet.core.spec import InstanceIdentity, InstanceRecord, InstanceSpec, State
from ramet.core.volumes import MountTaken, VolumeMount, VolumeNotAttached, VolumeWritable
from ramet.instance.events import AttachAsked, DetachAsked, PoolAsked, Rewound
from ramet.instance.fleet_types import WrongState
from ramet.instance.transitions import step

DATA = VolumeMount(VolumeId("data"), "/data")
READ = VolumeMount(VolumeId("read"), "/read", is_read_only=True)
STOPPED = InstanceRecord(
    InstanceSpec("demo:1", "sha256:0", "fake", 1, 1, 1),
    InstanceIdentity(InstanceId("i"), "web", 2, "0" * 32, 0.0),
    State.STOPPED,
    layer=LayerId("layer"),
)


def having(record: InstanceRecord, *mounts: VolumeMount, **spec: object) -> InstanceRecord:
    return replace(record, spec=replace(record.spec, volumes=mounts, **spec))  # type: ignore[arg-type]


def test_a_stopped_instance_is_given_volumes_and_they_are_taken_from_it() -> None:
    record, actions = step(STOPPED, AttachAsked(DATA))
    assert (record.spec.volumes, record.state, actions) == ((DATA,), State.STOPPED, ())
    record, _ = step(record, AttachAsked(READ))
    assert record.spec.volumes == (DATA, READ)
    assert step(record, DetachAsked(DATA.volume))[0].spec.volumes == (READ,)


@pytest.mark.parametrize("state", [state for state in State if state is not State.STOPPED])
@pytest.mark.parametrize("event", [AttachAsked(DATA), DetachAsked(READ.volume)])
def test_in_any_other_state_it_is_refused_with_what_to_do(
    state: State, event: AttachAsked | DetachAsked
) -> None:
    record = having(replace(STOPPED, state=state), READ)
    with pytest.raises(WrongState, match="given other volumes") as refused:
        step(record, event)
    assert "ramet" in refused.value.remedy
    with pytest.raises(WrongState):
        step(replace(record, state=State.SHUTDOWN, is_deleting=True), event)


@pytest.mark.parametrize(
    ("event", "error"),
    [
        (AttachAsked(replace(DATA, path="/other")), MountTaken),
        (AttachAsked(replace(READ, path="/data")), MountTaken),
        (DetachAsked(READ.volume), VolumeNotAttached),
    ],
)
def test_what_it_has_already_or_has_not_is_told(
    event: AttachAsked | DetachAsked, error: type[Conflict | NotFound]
) -> None:
    with pytest.raises(error):
        step(having(STOPPED, DATA), event)


def test_of_who_writes_no_children_are_made_ahead() -> None:
    with pytest.raises(VolumeWritable):
        step(having(STOPPED, DATA), PoolAsked(1))
    with pytest.raises(VolumeWritable):
        step(having(STOPPED, fork_pool=1), AttachAsked(DATA))
    step(having(STOPPED, DATA), PoolAsked(0))
    step(having(STOPPED, READ), PoolAsked(1))


def test_a_disk_goes_back_without_its_volumes_and_memory_with_them() -> None:
    now, then = having(STOPPED, DATA), replace(STOPPED.spec, volumes=(READ,))
    layer = LayerId("before")
    assert step(now, Rewound(then, layer, None))[0].spec.volumes == (DATA,)
    assert step(now, Rewound(then, layer, CaptureId("memory")))[0].spec.volumes == (READ,)
