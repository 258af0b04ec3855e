"""What a fork must be: itself, with its parent's past, while its parent goes on."""

import time

import anyio
import pytest

from tests.vm.site import Children, Site, http_get

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

CHILD_COUNT = 8


async def _longest_gap_s(ip: str, scope: anyio.CancelScope, gaps: list[float]) -> None:
    """Ask a server again and again; note how long each answer let wait for itself."""
    with scope:
        while True:
            began = time.perf_counter()
            await http_get(ip, "/alive")
            gaps.append(time.perf_counter() - began)


async def test_every_child_is_itself_with_its_parents_past(
    site: Site, source: str, children: Children
) -> None:
    await site.sh(source, "echo memory1 >/dev/shm/state; echo disk1 >/var/state")
    scope, gaps = anyio.CancelScope(), list[float]()
    names = [f"child-{number}" for number in range(CHILD_COUNT)]
    async with anyio.create_task_group() as group:
        group.start_soon(_longest_gap_s, site.ip_of(source), scope, gaps)
        outcomes = await children.fork(source, *names)
        scope.cancel()
    assert gaps, "the source answered during the forks"
    # For whoever reads (pytest -rP): a test is never timed.
    print("longest answer of the source during the forks, ms:", round(max(gaps) * 1000))
    for phase in outcomes[0].timings_ms:
        print(phase, "ms, mean:", round(sum(outcome.timings_ms[phase] for outcome in outcomes) / CHILD_COUNT))

    states = {name: await site.get_state(name) for name in (source, *names)}
    for name, state in states.items():
        assert state["hostname"] == name
        assert state["mac"] == site.fleet.get(name).mac
        assert (state["memory"], state["disk"]) == ("memory1", "disk1")
        assert state["machine_id"] == site.fleet.get(name).record.identity.machine_id
    for fact in ("mac", "machine_id"):
        assert len({state[fact] for state in states.values()}) == CHILD_COUNT + 1
    assert len({site.ip_of(name) for name in states}) == CHILD_COUNT + 1
