"""Which sessions are completed when, and what becomes of one that cannot be."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from ramet.pager import PagerClient, PagerSession, SessionPhase
from ramet.pager.errors import CompletionFailed
from ramet.pager.graduation import Graduation, GraduationConfig

CONFIG = GraduationConfig(min_session_age_s=10, max_concurrent=2)


def session(name: str, phase: SessionPhase = SessionPhase.SERVING) -> PagerSession:
    counts = dict.fromkeys(("size_bytes", "fault_count", "copied_bytes", "overlaid_bytes", "zeroed_bytes"), 0)
    counts |= dict.fromkeys(("replayed_bytes", "removed_bytes", "deferral_count", "answering_us"), 0)
    return PagerSession(
        id=name, phase=phase, vmm_pid=1, answering_us_max=0, is_recording=False, **cast(Any, counts)
    )


class FakePager:
    """Has sessions, and completes those that are not to fail."""

    def __init__(self, names: Sequence[str], failing: Sequence[str] = ()) -> None:
        self.names, self.failing = list(names), failing
        self.completed: list[tuple[str, float]] = []

    async def statistics(self) -> Any:
        class Told:
            sessions = tuple(session(name) for name in self.names)

        return Told()

    async def complete_session(self, name: str, timeout_s: float) -> None:
        if name in self.failing:
            raise CompletionFailed("no room")
        self.completed.append((name, timeout_s))
        self.names.remove(name)


def graduation(pager: FakePager, config: GraduationConfig = CONFIG) -> Graduation:
    return Graduation(cast(PagerClient, pager), config)


def test_those_that_have_served_long_enough_are_due_oldest_first_and_only_so_many() -> None:
    watched = graduation(FakePager([]))
    assert watched.choose([session("b")], 0.0) == []
    assert watched.choose([session("b"), session("a"), session("c")], 5.0) == []
    assert watched.choose([session("b"), session("a"), session("c")], 10.0) == ["b"]
    assert watched.choose([session("b"), session("a"), session("c")], 15.0) == ["b", "a"]


def test_one_that_does_not_serve_yet_or_records_is_not_due() -> None:
    watched = graduation(FakePager([]))
    sessions = [session("a", SessionPhase.WAITING), replace(session("b"), is_recording=True)]
    assert watched.choose(sessions, 0.0) == []
    assert watched.choose(sessions, 100.0) == []
    assert watched.choose([session("a")], 100.0) == []  # It serves since now.
    assert watched.choose([session("a")], 110.0) == ["a"]


def test_one_that_was_gone_begins_anew() -> None:
    watched = graduation(FakePager([]))
    watched.choose([session("a")], 0.0)
    watched.choose([], 5.0)
    assert watched.choose([session("a")], 10.0) == []


@pytest.mark.anyio
async def test_a_scan_completes_those_that_are_due() -> None:
    pager = FakePager(["a", "b"])
    watched = graduation(pager, replace(CONFIG, completion_timeout_s=7))
    assert await watched.scan(0.0) == []
    found = await watched.scan(10.0)
    assert sorted(each.session for each in found) == ["a", "b"]
    assert all(each.failure is None for each in found)
    assert sorted(pager.completed) == [("a", 7), ("b", 7)]
    assert await watched.scan(20.0) == []


@pytest.mark.anyio
async def test_one_that_cannot_be_completed_is_told_and_is_tried_again_after_as_long() -> None:
    pager = FakePager(["a"], failing=["a"])
    watched = graduation(pager)
    await watched.scan(0.0)
    (failed,) = await watched.scan(10.0)
    assert isinstance(failed.failure, CompletionFailed)
    assert await watched.scan(15.0) == []
    pager.failing = ()
    (again,) = await watched.scan(20.0)
    assert again.failure is None
