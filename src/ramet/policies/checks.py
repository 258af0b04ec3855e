"""Asks instances whether they do well, as they were asked for, and tells what it finds.

Only one that runs is asked. One that sleeps, or is on its way there, keeps what was found; an answer that
comes when it does not run any more, or runs anew, says nothing. Neither does it that one fails which was
frozen meanwhile, to be captured, and could not answer. How each does is in its record; what has been
counted on the way to the next finding is not, and a daemon that starts counts anew.
"""

import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

import anyio

from ramet.core.health import Health, HealthCheck, HealthStatus
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord, State
from ramet.policies.due import DueTimes
from ramet.policies.health import judge_check

MAX_CONCURRENT: Final = 256
FIRST_S_MAX: Final = 1.0
"""How soon one that has just come to run is asked at first."""
STILL_SHARE: Final = 0.25
"""A check of which the workload stood still for such a part does not count if it fails.

Not any smaller one: a workload that is forked all the time stands still a little all the time.
"""
JITTER: Final = 0.1
"""By which part an interval is shorter or longer, so that many do not come together for good."""


class Prober(Protocol):
    """Asks an instance once: `ramet.effects.probes.Probes`."""

    async def probe(self, record: InstanceRecord, check: HealthCheck) -> str:
        """Return why the check failed; empty: it did not. Never fails."""
        ...

    def stood_still_s(self, instance: InstanceId) -> float:
        """Return for how long we have had its workload stand still in this run, up to now."""
        ...


OnFound = Callable[[InstanceRecord, HealthStatus], Awaitable[None]]


@dataclass(slots=True)
class _Checked:
    """An instance that has a check. `run` is another number whenever it was not running in between.

    `began` is when its run began, by a clock that nobody sets.
    """

    record: InstanceRecord
    check: HealthCheck
    health: Health
    began: float
    run: int = 0
    is_asked: bool = False
    asking: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    def give_up(self) -> None:
        """Wait no more for an answer. What was sent for it is not sent again: it would wake a sleeper."""
        if self.is_asked:
            self.asking.cancel()


class HealthKeeper:
    """Asks each running instance as often as its check says.

    Args:
        on_found: told how an instance does whenever that is another than its record says, and at each check
            of one that is unhealthy.
        now: Unix seconds.
        chance: a number from 0 to 1, another each time.
    """

    def __init__(
        self,
        prober: Prober,
        on_found: OnFound,
        max_concurrent: int = MAX_CONCURRENT,
        now: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._prober, self._on_found, self._now, self._chance = prober, on_found, now, chance
        self._checked: dict[InstanceId, _Checked] = {}
        self._due = DueTimes(now)
        self._places = anyio.Semaphore(max_concurrent)

    def health(self, instance: InstanceId) -> Health | None:
        """Return what the checks of an instance have found in this run; None: none has ended yet."""
        checked = self._checked.get(instance)
        return None if checked is None or checked.health.last_checked_at is None else checked.health

    def see(self, record: InstanceRecord) -> None:
        """Take note of what an instance is now. Never fails."""
        self._see(record, FIRST_S_MAX)

    async def run(self, found: Iterable[InstanceRecord] = ()) -> None:
        """Ask those that are due, until cancelled. `found`: the instances there are already."""
        for record in found:
            check = record.spec.health_check
            if check is not None:
                self._see(record, check.interval_s)
        async with anyio.create_task_group() as group:
            while True:
                instance = await self._due.next()
                checked = self._checked.get(instance)
                if checked is not None and not checked.is_asked and checked.record.state is State.RUNNING:
                    checked.is_asked, checked.asking = True, anyio.CancelScope()
                    run = checked.run
                    await self._places.acquire()
                    group.start_soon(self._ask, checked, run)

    def _see(self, record: InstanceRecord, first_s_max: float) -> None:
        check = record.spec.health_check
        if check is None or record.is_deleting:
            gone = self._checked.pop(record.id, None)
            if gone is not None:
                gone.give_up()
            return
        before = self._checked.get(record.id)
        if before is None or before.check != check:
            if before is not None:
                before.give_up()
            checked = self._checked[record.id] = _Checked(
                record, check, _at_first(record), self._began(record)
            )
        else:
            checked, was_running = before, before.record.state is State.RUNNING
            if record.started_at != before.record.started_at:
                checked.began = self._began(record)
            if record.started_at != before.record.started_at and record.health is None:
                checked.health = _at_first(record)
            checked.record = record
            if was_running and record.state is State.RUNNING:
                return
            checked.run += 1
            checked.give_up()
        if record.state is State.RUNNING:
            first_s = min(first_s_max, check.interval_s) * self._chance()
            self._due.put(self._now() + first_s, record.id)

    def _began(self, record: InstanceRecord) -> float:
        """Return when a run began; one that began in the future, by a clock that was set back, begins now."""
        now = self._now()
        return anyio.current_time() - max(
            0.0, now - (now if record.started_at is None else record.started_at)
        )

    async def _ask(self, checked: _Checked, run: int) -> None:
        check, instance = checked.check, checked.record.id
        error = f"no answer within {check.timeout_s:g} s"
        asked_at, stood_still_s = anyio.current_time(), self._prober.stood_still_s(instance)
        try:
            with checked.asking as scope:
                scope.deadline = anyio.current_time() + check.timeout_s
                if not scope.cancel_called:  # While it waited for a place.
                    error = await self._prober.probe(checked.record, check)
        finally:
            checked.is_asked = False
            self._places.release()
        if self._checked.get(instance) is not checked or checked.record.state is not State.RUNNING:
            return
        took_s = anyio.current_time() - asked_at
        was_still = self._prober.stood_still_s(instance) - stood_still_s > STILL_SHARE * took_s
        if checked.run == run and not (error and was_still):
            await self._judge(checked, error)
        wait_s = check.interval_s * (1 + JITTER * (2 * self._chance() - 1))
        self._due.put(self._now() + wait_s, instance)

    async def _judge(self, checked: _Checked, error: str) -> None:
        record, ran_s = checked.record, anyio.current_time() - checked.began
        checked.health = judge_check(checked.check, checked.health, error, ran_s, self._now())
        status = checked.health.status
        if status is not (record.health or HealthStatus.STARTING) or status is HealthStatus.UNHEALTHY:
            await self._on_found(record, status)


def _at_first(record: InstanceRecord) -> Health:
    return Health(record.health or HealthStatus.STARTING)
