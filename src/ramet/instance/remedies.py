"""What a person types next, about an instance that is not in the state a request needs."""

from ramet.core.snapshot import SnapshotKind
from ramet.core.spec import InstanceRecord, State


def to_run(record: InstanceRecord) -> str:
    """Return the command after which the instance runs; empty if it does."""
    name = record.name
    match record.state:
        case State.RUNNING:
            return ""
        case State.STOPPED if record.layer is None:
            return f"it was never made whole; remove it: ramet rm {name}"
        case State.STOPPED:
            return f"ramet start {name}"
        case State.STANDBY:
            return f"ramet restore {name}"
        case State.UNKNOWN:
            return f"see why: ramet inspect {name}"
        case State.SHUTDOWN if record.is_deleting:
            return ""
        case State.SHUTDOWN:
            return f"ramet wait {name} --state Stopped && ramet start {name}"
        case _:
            return f"ramet wait {name} --state Running"


def to_start(record: InstanceRecord) -> str:
    """Return what to do where it cannot be started."""
    if record.state is State.RUNNING:
        return f"boot it anew: ramet restart {record.name}"
    return to_run(record)


def to_attach(record: InstanceRecord) -> str:
    """Return what to do where its volumes cannot be changed: its guest mounts them when it boots."""
    name = record.name
    match record.state:
        case State.RUNNING:
            return f"ramet stop {name}, and start it again afterwards"
        case State.STANDBY:
            return f"ramet restore {name} && ramet stop {name}"
        case _:
            return to_run(record)


def to_stop(record: InstanceRecord) -> str:
    """Return what to do where it cannot be stopped."""
    match record.state:
        case State.STOPPED:
            return f"it takes no memory; remove it with its disk: ramet rm {record.name}"
        case State.SHUTDOWN:
            return f"ramet wait {record.name} --state Stopped"
        case State.UNKNOWN:
            return f"end it with all of its data: ramet rm --force {record.name}"
        case _:
            return to_run(record)


def to_restore(record: InstanceRecord) -> str:
    """Return what to do where it cannot be woken."""
    if record.state is State.RUNNING:
        return f"it runs; to go back to a snapshot: ramet stop {record.name}, then ramet snapshot restore"
    return to_run(record)


def to_rewind(record: InstanceRecord) -> str:
    """Return what to do where it cannot be put back to a snapshot."""
    if record.state is State.RUNNING:
        return f"ramet stop {record.name}"
    return to_run(record)


def to_snapshot(record: InstanceRecord, kind: SnapshotKind) -> str:
    """Return what to do where no snapshot of this kind can be taken."""
    if kind is SnapshotKind.STOPPED and record.state is State.STANDBY:
        return f"take one of kind Standby, or: ramet restore {record.name} && ramet stop {record.name}"
    if kind is SnapshotKind.STOPPED and record.state is State.RUNNING:
        return f"take one of kind Standby, or: ramet stop {record.name}"
    if record.state is State.STOPPED:
        return f"take one of kind Stopped, or: ramet start {record.name}"
    return to_run(record)


def to_delete(record: InstanceRecord) -> str:
    """Return what to do where it cannot be deleted."""
    return f"ramet wait {record.name} --state Running, and then delete it"
