"""Mistakes made on purpose, to see that the model finds them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ramet.admission.admission import Admission
from ramet.admission.captures import CaptureMemory
from ramet.core.restart import Restarts, RunEnd
from ramet.core.spec import InstanceRecord
from ramet.core.supervision import RestartVerdict, judge_restart
from ramet.disks.layers import LayerStore
from ramet.effects import boot, end, fork_pools
from ramet.instance import transitions
from ramet.net.firewall import Firewall
from ramet.net.slots import SlotPool
from ramet.net.taps import Tap
from ramet.policies import restarts
from ramet.snapshots.flight import Flight
from ramet.snapshots.schedules import ScheduleStore
from ramet.snapshots.store import CaptureStore
from ramet.store.database import Database
from ramet.vmm.fake.driver import FakeVm
from ramet.volumes.attachments import Attachments


def _skip(owner: Any, name: str) -> Callable[[], None]:
    return lambda: setattr(owner, name, lambda *arguments, **named: None)


def _skip_async(owner: Any, name: str) -> Callable[[], None]:
    async def nothing(*arguments: Any, **named: Any) -> None:
        return None

    return lambda: setattr(owner, name, nothing)


def _skip_folders() -> None:
    for module in (boot, end):
        setattr(module, "remove_folder", lambda folder: None)  # noqa: B010


def _forget_who_stopped_it() -> None:
    def judge(record: InstanceRecord, now: float) -> RestartVerdict:
        if record.restarts.end is RunEnd.REQUEST:
            record = replace(record, restarts=replace(record.restarts, end=RunEnd.ITSELF))
        return judge_restart(record, now)

    for module in (transitions, restarts):
        setattr(module, "judge_restart", judge)  # noqa: B010


def _count_no_attempts() -> None:
    def attempted(self: Restarts, at: float) -> Restarts:
        return replace(self, last_at=at, end=None)

    setattr(Restarts, "attempted", attempted)  # noqa: B010


MUTATIONS: dict[str, Callable[[], None]] = {
    "layers-stay-held": _skip(LayerStore, "release"),
    "slots-stay-held": _skip(SlotPool, "release"),
    "journal-is-not-ended": _skip(Database, "end"),
    "records-are-not-forgotten": _skip(Database, "forget"),
    "admissions-stay": _skip_async(Firewall, "revoke"),
    "taps-stay-open": _skip(Tap, "close"),
    "folders-stay": _skip_folders,
    "stored-captures-stay-held": _skip(CaptureStore, "release"),
    "layers-stay-pinned": _skip(LayerStore, "unpin"),
    "sleepers-forget-their-memory": _skip(CaptureStore, "hold"),
    "captures-stay-open": _skip(Flight, "_close_if_done"),
    "guests-stay-paused": _skip_async(FakeVm, "_go_on"),
    "vmms-are-not-killed": _skip_async(FakeVm, "kill"),
    "resources-stay-reserved": _skip(Admission, "forget"),
    "captures-stay-counted": _skip(CaptureMemory, "close"),
    "berths-are-not-ended": _skip_async(fork_pools, "end_berth"),
}

KEPT_MUTATIONS: dict[str, Callable[[], None]] = {
    "volumes-are-shared": _skip(Attachments, "_demand_free"),
    "runs-are-not-noted": _skip(ScheduleStore, "save"),
    "the-stopped-are-started": _forget_who_stopped_it,
    "attempts-are-not-counted": _count_no_attempts,
}
"""Those that the model finds when a daemon keeps to rules, too (`model_kept`)."""
