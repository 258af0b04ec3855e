"""What became of the children that were asked for at once."""

import time
from collections.abc import Awaitable, Callable, Sequence

import anyio

from ramet.core.errors import RametError
from ramet.instance.fleet_types import ForkOutcome, InstanceView

Outcomes = list[ForkOutcome]
Forked = tuple[InstanceView, dict[str, float]]
"""A child as it was made, and how long each phase of that took, in ms."""


async def outcomes_of(names: Sequence[str], make: Callable[[str], Awaitable[Forked]]) -> Outcomes:
    """Make one child for each of `names`, all at once; whatever befalls one is its own outcome."""
    outcomes: list[ForkOutcome | None] = [None] * len(names)

    async def make_one(index: int, name: str) -> None:
        began = time.perf_counter()
        try:
            view, timings_ms = await make(name)
        except RametError as error:
            outcomes[index] = ForkOutcome(name, None, error)
            return
        timings_ms["total"] = (time.perf_counter() - began) * 1000
        outcomes[index] = ForkOutcome(name, view, None, timings_ms)

    async with anyio.create_task_group() as group:
        for index, name in enumerate(names):
            group.start_soon(make_one, index, name)
    return [outcome for outcome in outcomes if outcome is not None]
