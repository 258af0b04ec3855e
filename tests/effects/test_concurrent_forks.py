"""What others see while a source is being forked, and who of several wins."""

from dataclasses import FrozenInstanceError

import anyio
import anyio.lowlevel
import pytest

from ramet.core.spec import State
from ramet.instance.fleet_types import ForkOutcome, NameTaken
from ramet.vmm.fake.faults import Call
from tests.effects.test_sharing import Forks
from tests.effects.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

BURST = 25


@pytest.mark.parametrize("call", ["copy_ahead", "load"])
async def test_a_source_is_read_and_used_while_it_is_forked(world: World, call: Call) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        held = daemon.faults.hold(call)
        async with anyio.create_task_group() as group:
            forks = Forks(daemon, group)
            await forks.ask("child")
            await held.wait_reached()
            with anyio.fail_after(10):
                assert daemon.fleet.get("src").record.state is State.RUNNING
                assert {view.record.name for view in daemon.fleet.list()} == {"src", "child"}
                await daemon.run("src", "write", "file", "while it is forked")
                assert await daemon.run("src", "read", "file") == "while it is forked"
            held.release()
        assert forks.outcomes["child"].error is None


async def test_one_vmm_that_hangs_in_its_load_holds_up_neither_the_others_nor_any_read(world: World) -> None:
    names = [f"child{index}" for index in range(BURST)]
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        held = daemon.faults.hold("load")
        outcomes: list[ForkOutcome] = []

        async def fork_all() -> None:
            outcomes.extend(await daemon.fleet.fork("src", names))

        def running() -> set[str]:
            views = daemon.fleet.list()
            return {view.record.name for view in views if view.record.state is State.RUNNING} - {"src"}

        async with anyio.create_task_group() as group:
            group.start_soon(fork_all)
            await held.wait_reached()
            with anyio.fail_after(60):
                while len(running()) < BURST - 1:
                    for name in ("src", *running()):
                        assert daemon.fleet.get(name).record.state is State.RUNNING
                    await anyio.lowlevel.checkpoint()
            (stuck,) = set(names) - running()
            assert daemon.fleet.get(stuck).record.state is State.CREATED
            for name in running():
                assert await daemon.run(name, "echo", name) == f"{name}\n"
            assert not outcomes
            held.release()
        assert [outcome.error for outcome in outcomes] == [None] * BURST


async def test_of_two_forks_that_want_one_name_exactly_one_wins(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        outcomes = await daemon.fleet.fork("src", ["twin", "twin"])
        errors = [outcome.error for outcome in outcomes]
        assert [type(error) for error in errors if error is not None] == [NameTaken]
        assert [view.record.name for view in daemon.fleet.list()] == ["src", "twin"]
        assert daemon.site.network.statistics().held_count == 2


async def test_a_child_that_is_being_made_is_seen_by_name_and_address_and_both_are_free_when_it_failed(
    world: World,
) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        held = daemon.faults.hold("copy_ahead")
        async with anyio.create_task_group() as group:
            forks = Forks(daemon, group)
            await forks.ask("child")
            await held.wait_reached()
            view = daemon.fleet.get("child")
            assert view.record.state is State.CREATED
            assert view.ip is not None
            with pytest.raises(NameTaken):
                await daemon.fleet.create("child", daemon.spec)
            other = await daemon.fleet.create("other", daemon.spec)
            assert other.ip != view.ip
            assert other.mac != view.mac
            group.cancel_scope.cancel()
            held.release()
        with anyio.fail_after(10):
            while daemon.fleet.get("child").record.state is State.CREATED:
                await anyio.lowlevel.checkpoint()
        await daemon.fleet.delete("child")
        with pytest.raises(Exception, match="no instance 'child'"):
            daemon.fleet.get("child")
        assert daemon.site.network.statistics().held_count == 2


async def test_what_guests_are_told_of_the_network_is_nobodys_to_change(world: World) -> None:
    async with world.daemon() as daemon:
        facts = daemon.site.network.facts
        with pytest.raises(FrozenInstanceError):
            facts.mtu_bytes = 1  # type: ignore[misc]
        assert daemon.site.network.facts == facts
