"""Whatever call fails: nothing is leaked, names are free again, and the source runs on as if nothing were."""

from collections.abc import Sequence

import anyio
import anyio.lowlevel
import pytest

from ramet.core.spec import State
from ramet.instance.fleet_types import DeleteIncomplete
from ramet.vmm.fake.faults import CAPTURE_CALLS, Call
from ramet.vmm.port import VmmFailed
from tests.effects.world import Daemon, World

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

WELL_TIMEOUT_S = 20.0


async def fork_must_fail(daemon: Daemon, names: Sequence[str], what: str) -> None:
    outcomes = await daemon.fleet.fork("src", names)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    assert failed, what
    for outcome in outcomes:
        if outcome.error is None:
            assert await daemon.is_well(outcome.name), what
            await daemon.fleet.delete(outcome.name)


async def check_source_is_well(world: World, daemon: Daemon, before: dict[str, set[str]], what: str) -> None:
    """The source is as it was, but for the layers of its own chain, and nobody else is there."""
    assert await daemon.is_well("src"), what
    after = world.leftovers()
    record = daemon.fleet.get("src").record
    assert record.layer is not None
    top = daemon.site.layers.id_of(await daemon.site.rigs[record.id].vm.top_layer())  # type: ignore[attr-defined]
    assert record.layer == top, what
    chain = {path.name for path, form in daemon.site.layers.chain(record.layer) if form == "qcow2"}
    assert after.pop("layers") == chain, what
    assert after == {kind: found for kind, found in before.items() if kind != "layers"}, what
    assert daemon.site.layers.statistics()["held"] == 1, what
    assert daemon.site.network.statistics().held_count == 1, what


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
async def test_a_create_that_fails_leaves_nothing(world: World, late: bool) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        daemon.faults.fail("boot", VmmFailed("on demand"), late=late)
        with pytest.raises(VmmFailed, match="on demand"):
            await daemon.fleet.create("src", daemon.spec)
        assert world.leftovers() == before
        assert daemon.site.network.statistics().held_count == 0
        assert (await daemon.fleet.create("src", daemon.spec)).record.state is State.RUNNING


@pytest.mark.parametrize("child_count", [1, 5])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
async def test_a_capture_that_fails_at_any_call_fails_its_forks_alone(
    world: World, child_count: int, late: bool
) -> None:
    names = [f"child{index}" for index in range(child_count)]
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        before = world.leftovers()
        for call in CAPTURE_CALLS:
            daemon.faults.fail(call, VmmFailed("on demand"), late=late)
            await fork_must_fail(daemon, names, call)
            assert daemon.faults.is_used_up, call
            await check_source_is_well(world, daemon, before, call)
        await daemon.run("src", "write", "still", "writes")
        assert [outcome.error for outcome in await daemon.fleet.fork("src", names)] == [None] * child_count
        assert await daemon.run("child0", "read", "still") == "writes"


@pytest.mark.parametrize("child_count", [1, 5])
async def test_a_child_that_fails_at_any_call_fails_alone(world: World, child_count: int) -> None:
    names = [f"child{index}" for index in range(child_count)]
    calls: tuple[Call, ...] = ("start_waiting", "load")
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        before = world.leftovers()
        for call in calls:
            for late in (False, True):
                daemon.faults.fail(call, VmmFailed("on demand"), after=child_count - 1, late=late)
                outcomes = await daemon.fleet.fork("src", names)
                assert sum(outcome.error is not None for outcome in outcomes) == 1
                for outcome in outcomes:
                    if outcome.error is None:
                        await daemon.fleet.delete(outcome.name)
                await check_source_is_well(world, daemon, before, f"{call} {late}")


@pytest.mark.parametrize("fault", ["refuse", "hangup"])
@pytest.mark.parametrize("op", ["sync", "freeze", "thaw"])
async def test_a_guest_that_fails_a_step_of_its_capture_is_not_left_frozen(
    world: World, op: str, fault: str
) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        before = world.leftovers()
        await daemon.run("src", "fault", op, fault)
        for outcome in await daemon.fleet.fork("src", ["child"]):
            if outcome.error is None:
                await daemon.fleet.delete("child")
        await check_source_is_well(world, daemon, before, op)


async def test_a_guest_that_refuses_again_and_again_is_told_until_it_is_thawed(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        before = world.leftovers()
        await daemon.run("src", "fault", "thaw", "refuse", "3")
        await fork_must_fail(daemon, ["child"], "thaw")
        with anyio.fail_after(WELL_TIMEOUT_S):
            while not await daemon.is_well("src"):
                await anyio.lowlevel.checkpoint()
        await check_source_is_well(world, daemon, before, "thaw")


@pytest.mark.parametrize("fault", ["refuse", "hangup"])
async def test_a_child_that_does_not_take_its_identity_is_gone(world: World, fault: str) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        before = world.leftovers()
        await daemon.run("src", "fault", "identify", fault)  # Its children inherit that.
        await fork_must_fail(daemon, ["a", "b"], fault)
        await check_source_is_well(world, daemon, before, fault)


async def test_a_destruction_that_fails_keeps_the_instance_visible_and_can_be_begun_again(
    world: World,
) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        await daemon.fleet.create("src", daemon.spec)
        daemon.faults.fail("kill", VmmFailed("on demand"))
        with pytest.raises(DeleteIncomplete, match="on demand"):
            await daemon.fleet.delete("src")
        assert daemon.fleet.get("src").record.state is State.UNKNOWN
        await daemon.fleet.delete("src")
        assert world.leftovers() == before


async def test_a_stop_that_fails_shows_and_leaves_the_instance_to_be_deleted(world: World) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        await daemon.fleet.create("src", daemon.spec)
        daemon.faults.fail("kill", VmmFailed("on demand"))
        view = await daemon.fleet.stop("src")
        assert view.record.state in (State.STOPPED, State.UNKNOWN)
        await daemon.fleet.delete("src")
        assert world.leftovers() == before


async def test_a_mistake_of_ours_in_one_action_is_that_instances_failure(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("other", daemon.spec)

        async def boot(machine: object) -> None:
            raise ZeroDivisionError("a mistake")

        with monkeypatch.context() as patched:
            patched.setattr(daemon.site.drivers["fake"], "boot", boot)
            with pytest.raises(Exception, match=r"internal error.*a mistake"):
                await daemon.fleet.create("src", daemon.spec)
        assert await daemon.is_well("other")
        assert (await daemon.fleet.create("src", daemon.spec)).record.state is State.RUNNING


async def test_a_mistake_of_ours_in_a_capture_fails_its_forks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        before = world.leftovers()

        async def save_devices(target: object) -> None:
            raise ZeroDivisionError("a mistake")

        with monkeypatch.context() as patched:
            rig = daemon.site.rigs[daemon.fleet.get("src").record.id]
            patched.setattr(rig.vm, "save_devices", save_devices)
            await fork_must_fail(daemon, ["a", "b"], "mistake")
        await check_source_is_well(world, daemon, before, "mistake")
