"""The queue of shaping against a stand-in for the kernel that knows which TAPs live and fails on demand."""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.net import shaping
from ramet.net.errors import NetworkFailed
from ramet.net.rates import UNLIMITED, RateLimits
from ramet.net.shaping import ShapingQueue
from ramet.net.slots import Endpoint

pytestmark = pytest.mark.anyio
SLOW, FAST = RateLimits(1_000, 2_000), RateLimits(10_000, 20_000)


def endpoint(slot: int) -> Endpoint:
    return Endpoint(slot, IPv4Address(f"10.100.0.{slot}"))


@dataclass
class StandIn:
    """A kernel. It notes each call, takes some turns of the loop for it, and never does two at once."""

    living: set[Endpoint] = field(default_factory=set)
    limits: dict[Endpoint, RateLimits] = field(default_factory=dict)
    beside: set[Endpoint] = field(default_factory=set)
    """The TAPs whose IFBs are there."""
    failing: set[Endpoint] = field(default_factory=set)
    applied: list[tuple[Endpoint, RateLimits]] = field(default_factory=list)
    removed: list[list[Endpoint]] = field(default_factory=list)
    listing_fails: bool = False
    turn_count: int = 3
    is_busy: bool = False

    async def present(self, endpoints: Iterable[Endpoint]) -> Mapping[Endpoint, RateLimits]:
        await self._work()
        if self.listing_fails:
            raise NetworkFailed("no list")
        return {each: self.limits.get(each, UNLIMITED) for each in endpoints if each in self.living}

    async def apply(self, endpoint: Endpoint, limits: RateLimits) -> bool:
        self.applied.append((endpoint, limits))
        await self._work()
        if endpoint in self.failing:
            raise NetworkFailed("no limits today")
        if endpoint not in self.living:
            return False
        self.limits[endpoint] = limits
        self.beside.add(endpoint)
        return True

    async def remove(self, endpoints: Iterable[Endpoint]) -> None:
        gone = list(endpoints)
        self.removed.append(gone)
        await self._work()
        if self.failing & set(gone):
            raise NetworkFailed("no removal today")
        self.beside -= set(gone)

    async def _work(self) -> None:
        assert not self.is_busy, "two at once"
        self.is_busy = True
        for _ in range(self.turn_count):
            await anyio.lowlevel.checkpoint()
        self.is_busy = False

    def end(self, endpoint: Endpoint) -> None:
        """The VMM has ended: the TAP is gone, its limits with it, and its IFB is not."""
        self.living.discard(endpoint)
        self.limits.pop(endpoint, None)


def queue_on(kernel: StandIn, *slots: int) -> ShapingQueue:
    kernel.living |= {endpoint(slot) for slot in slots}
    return ShapingQueue(kernel)


async def test_each_is_limited_once_in_the_order_of_asking() -> None:
    kernel = StandIn()
    queue = queue_on(kernel, *range(2, 22))
    order = random.Random(1).sample(range(2, 22), 20)
    for slot in order:
        queue.put_nowait(endpoint(slot), SLOW)
    await queue.work()
    await queue.work()
    assert kernel.applied == [(endpoint(slot), SLOW) for slot in order]
    assert queue.statistics().applied_count == 20


async def test_of_several_wishes_the_last_is_carried_out() -> None:
    kernel = StandIn()
    queue = queue_on(kernel, 2)
    queue.put_nowait(endpoint(2), SLOW)
    queue.put_nowait(endpoint(2), FAST)
    await queue.work()
    assert kernel.applied == [(endpoint(2), FAST)]


async def test_a_wish_that_comes_during_its_turn_gets_another() -> None:
    kernel = StandIn()
    queue = queue_on(kernel, 2)
    queue.put_nowait(endpoint(2), SLOW)
    async with anyio.create_task_group() as group:
        group.start_soon(queue.work)
        while not kernel.applied:
            await anyio.lowlevel.checkpoint()
        queue.put_nowait(endpoint(2), FAST)
    assert kernel.limits == {endpoint(2): FAST}
    assert len(kernel.applied) == 2


async def test_who_has_its_limits_is_left_alone() -> None:
    kernel = StandIn(limits={endpoint(2): SLOW, endpoint(3): FAST})
    queue = queue_on(kernel, 2, 3)
    for slot in (2, 3):
        queue.put_nowait(endpoint(slot), SLOW)
    await queue.work()
    assert kernel.applied == [(endpoint(3), SLOW)]
    assert queue.statistics().kept_count == 1


async def test_a_tap_released_before_its_turn_is_skipped() -> None:
    kernel = StandIn()
    queue = queue_on(kernel, 2, 3)
    queue.put_nowait(endpoint(2), SLOW)
    queue.put_nowait(endpoint(3), SLOW)
    async with anyio.create_task_group() as group:
        group.start_soon(queue.work)
        while not kernel.applied:
            await anyio.lowlevel.checkpoint()
        kernel.end(endpoint(3))
        group.start_soon(queue.remove, endpoint(3))
    assert kernel.applied == [(endpoint(2), SLOW)]
    assert queue.statistics().skipped_count == 1


async def test_a_release_waits_for_the_turn_under_way_and_comes_after_it() -> None:
    kernel = StandIn()
    queue = queue_on(kernel, 2)
    queue.put_nowait(endpoint(2), SLOW)
    async with anyio.create_task_group() as group:
        group.start_soon(queue.work)
        while not kernel.applied:
            await anyio.lowlevel.checkpoint()
        await queue.remove(endpoint(2))
        assert kernel.removed == [[endpoint(2)]]
    assert kernel.beside == set()


async def test_a_release_does_not_wait_for_all_that_waits() -> None:
    kernel = StandIn()
    queue = queue_on(kernel, *range(2, 52))
    for slot in range(2, 52):
        queue.put_nowait(endpoint(slot), SLOW)
    async with anyio.create_task_group() as group:
        group.start_soon(queue.work)
        while not kernel.applied:
            await anyio.lowlevel.checkpoint()
        await queue.remove(endpoint(51))
        assert len(kernel.applied) < 5


async def test_releases_that_come_together_share_a_removal() -> None:
    kernel = StandIn()
    queue = queue_on(kernel)
    for slot in range(2, 27):
        queue.hold(endpoint(slot), SLOW)
    async with anyio.create_task_group() as group:
        for slot in range(2, 27):
            group.start_soon(queue.remove, endpoint(slot))
    assert sum(len(gone) for gone in kernel.removed) == 25
    assert len(kernel.removed) <= 2


async def test_what_has_no_limits_has_nothing_to_remove() -> None:
    kernel = StandIn()
    queue = queue_on(kernel, 2)
    queue.hold(endpoint(2), UNLIMITED)
    await queue.remove(endpoint(2))
    assert kernel.removed == []


async def test_a_failed_removal_is_told_and_tried_again() -> None:
    kernel = StandIn(failing={endpoint(2)}, beside={endpoint(2)})
    queue = queue_on(kernel)
    queue.hold(endpoint(2), SLOW)
    with pytest.raises(NetworkFailed):
        await queue.remove(endpoint(2))
    kernel.failing.clear()
    await queue.remove(endpoint(2))
    assert kernel.beside == set()


async def test_a_tap_made_with_its_limits_has_no_turn() -> None:
    kernel = StandIn()
    queue = queue_on(kernel, 2)
    queue.put_nowait(endpoint(2), SLOW)
    queue.hold(endpoint(2), FAST)
    await queue.work()
    assert kernel.applied == []


async def test_without_a_list_all_are_limited_anew() -> None:
    kernel = StandIn(limits={endpoint(2): SLOW}, listing_fails=True)
    queue = queue_on(kernel, 2)
    queue.put_nowait(endpoint(2), SLOW)
    await queue.work()
    assert kernel.applied == [(endpoint(2), SLOW)]


async def test_what_fails_is_degraded_and_tried_again_until_it_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shaping, "RETRY_S", 0.001)
    kernel = StandIn(failing={endpoint(2)})
    queue = queue_on(kernel, 2, 3)
    async with anyio.create_task_group() as group:
        group.start_soon(queue.run)
        for slot in (2, 3):
            queue.put_nowait(endpoint(slot), SLOW)
        while queue.statistics().failed_count < 3:
            await anyio.lowlevel.checkpoint()
        assert queue.statistics().degraded == {"rmt00002": "no limits today"}
        assert kernel.applied.count((endpoint(3), SLOW)) == 1
        kernel.failing.clear()
        while queue.statistics().degraded:
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    assert kernel.limits == {endpoint(2): SLOW, endpoint(3): SLOW}


async def test_a_degraded_endpoint_that_is_released_is_degraded_no_more() -> None:
    kernel = StandIn(failing={endpoint(2)})
    queue = queue_on(kernel, 2)
    queue.put_nowait(endpoint(2), SLOW)
    await queue.work()
    assert queue.statistics().degraded
    kernel.failing.clear()
    await queue.remove(endpoint(2))
    assert not queue.statistics().degraded


STEPS = st.lists(
    st.tuples(st.sampled_from(["make", "ask", "end", "wait", "fail"]), st.integers(2, 5), st.integers(0, 4)),
    max_size=40,
)


@given(STEPS)
def test_whatever_comes_nobody_is_limited_after_release_and_all_others_as_asked(
    steps: list[tuple[str, int, int]],
) -> None:
    """TAPs come and go while the queue works; in the end each has the limits it was asked for last."""
    anyio.run(_live_through, steps)


async def _live_through(steps: list[tuple[str, int, int]]) -> None:
    kernel = StandIn()
    queue = ShapingQueue(kernel)
    wanted: dict[Endpoint, RateLimits] = {}
    asked_count = 0
    async with anyio.create_task_group() as releases, anyio.create_task_group() as group:
        group.start_soon(queue.run)
        leaving: set[Endpoint] = set()

        async def release(gone: Endpoint) -> None:
            await queue.remove(gone)
            kernel.limits.pop(gone, None)
            assert gone not in kernel.beside, "something was left, or made after the release"
            leaving.discard(gone)

        for what, slot, number in steps:
            place = endpoint(slot)
            limits = RateLimits(1_000 + number, 1_000)
            if what == "make" and place not in kernel.living | leaving:
                kernel.living.add(place)
                queue.hold(place, limits)
                kernel.limits[place] = wanted[place] = limits
                kernel.beside.add(place)
            elif what == "ask" and place in kernel.living:
                queue.put_nowait(place, limits)
                wanted[place] = limits
                asked_count += 1
            elif what == "end" and place in kernel.living and place not in kernel.failing:
                kernel.end(place)
                del wanted[place]
                leaving.add(place)
                releases.start_soon(release, place)
            elif what == "fail":
                kernel.failing = {place} - leaving
                if number:
                    kernel.failing = set()
            else:
                for _ in range(number):
                    await anyio.lowlevel.checkpoint()
        kernel.failing = set()
        for place in list(kernel.living):
            queue.put_nowait(place, wanted[place])
        while leaving or queue.statistics().waiting_count or kernel.is_busy:
            await anyio.lowlevel.checkpoint()
        assert kernel.limits == wanted
        assert not queue.statistics().degraded
        assert kernel.beside == kernel.living
        assert len(kernel.applied) <= asked_count + len(wanted), "somebody was limited twice for one wish"
        group.cancel_scope.cancel()
