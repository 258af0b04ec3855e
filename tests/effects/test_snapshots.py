"""Snapshots keep an instant of an instance for as long as they are wanted, whatever becomes of it."""

from typing import Any
from unittest.mock import AsyncMock, Mock

import anyio
import pytest

from ramet.core.ids import LayerId
from ramet.core.snapshot import SnapshotKind
from ramet.core.spec import State
from ramet.disks.layers import LayerBroken
from ramet.effects.probes import Probes
from ramet.effects.snapshots import ForeignSnapshot
from ramet.instance.events import Rewound
from ramet.instance.fleet_types import WrongState
from ramet.net.errors import FirewallFailed
from ramet.snapshots.catalog import SnapshotAmbiguous, SnapshotNameTaken, SnapshotNotFound
from ramet.vmm.port import VmmFailed
from tests.effects.test_standby import settled
from tests.effects.world import Daemon, World

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

STATES = [State.RUNNING, State.STANDBY, State.STOPPED]


async def bring(daemon: Daemon, name: str, state: State) -> None:
    """Make a running instance something else."""
    if state is State.STANDBY:
        await daemon.fleet.standby(name)
    elif state is State.STOPPED:
        await daemon.fleet.stop(name)


@pytest.mark.parametrize("state", STATES)
async def test_a_snapshot_outlives_its_source_and_the_daemon(world: World, state: State) -> None:
    kind = SnapshotKind.STOPPED if state is State.STOPPED else SnapshotKind.STANDBY
    async with world.daemon() as daemon:
        before = world.leftovers()
        await daemon.fleet.create("src", daemon.spec)
        await daemon.run("src", "set", "when", "then")
        await daemon.run("src", "write", "when", "then")
        await bring(daemon, "src", state)
        snapshot = await daemon.snapshots.create("src", kind, "then", {"of": "test"})
        assert daemon.fleet.get("src").record.state is state
        if state is State.RUNNING:
            await daemon.run("src", "write", "when", "later")
        await daemon.fleet.delete("src")
    async with world.daemon() as daemon:
        assert daemon.snapshots.list() == [snapshot]
        for target in STATES:
            (outcome,) = await daemon.snapshots.fork("then", ["child"], target=target)
            assert outcome.view is not None, outcome.error
            assert outcome.view.record.state is target
            await daemon.fleet.bring_to("child", State.RUNNING)
            has_memory = SnapshotKind.STANDBY is kind and target is not State.STOPPED
            memory = await daemon.memory("child")
            assert memory["variables"] == ({"when": "then"} if has_memory else {})
            assert (memory["hostname"], memory["ip"]) == ("child", outcome.view.ip)
            assert await daemon.run("child", "read", "when") == "then"
            await daemon.run("child", "write", "when", "child")
            await daemon.fleet.delete("child")
        await daemon.snapshots.delete(snapshot.id)
        await settled(world, captures=0)
        assert world.leftovers() == before


@pytest.mark.parametrize("kind", SnapshotKind)
async def test_an_instance_goes_back_to_its_snapshot_and_keeps_who_it_is(
    world: World, kind: SnapshotKind
) -> None:
    async with world.daemon() as daemon:
        ip = (await daemon.fleet.create("src", daemon.spec)).ip
        await daemon.run("src", "set", "when", "then")
        await daemon.run("src", "write", "when", "then")
        if kind is SnapshotKind.STOPPED:
            await daemon.fleet.stop("src")
        await daemon.snapshots.create("src", kind, "then", {})
        if kind is SnapshotKind.STOPPED:
            await daemon.fleet.start("src")
        await daemon.run("src", "write", "when", "later")
        with pytest.raises(WrongState):
            await daemon.snapshots.restore("src", "then")
        await daemon.fleet.stop("src")
        for _ in range(2):
            view = await daemon.snapshots.restore("src", "then")
            expected = State.STOPPED if kind is SnapshotKind.STOPPED else State.RUNNING
            assert (view.record.state, view.ip) == (expected, ip)
            await daemon.fleet.bring_to("src", State.RUNNING)
            assert await daemon.run("src", "read", "when") == "then"
            await daemon.run("src", "write", "when", "later")
            await daemon.fleet.stop("src")
        await daemon.fleet.delete("src")
        await daemon.snapshots.delete("then")
        await settled(world, captures=0, layers=0, processes=0, journal=0)


async def test_an_instance_put_back_without_waking_can_still_wake_after_a_restart(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.run("src", "set", "when", "then")
        await daemon.snapshots.create("src", SnapshotKind.STANDBY, "then", {})
        await daemon.fleet.stop("src")
        view = await daemon.snapshots.restore("src", "then", target=State.STANDBY)
        assert view.record.state is State.STANDBY
        await daemon.snapshots.delete("then")
    async with world.daemon() as daemon:
        await daemon.fleet.restore("src")
        assert (await daemon.memory("src"))["variables"] == {"when": "then"}


async def test_of_an_instance_that_cannot_be_put_back_no_memory_is_held(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        snapshot = await daemon.snapshots.create("src", SnapshotKind.STANDBY, "then", {})
        await daemon.fleet.stop("src")
        with monkeypatch.context() as patch:
            patch.setattr(daemon.site.layers, "create_on", Mock(side_effect=LayerBroken("no room")))
            with pytest.raises(LayerBroken):
                await daemon.snapshots.restore("src", "then")
        await daemon.snapshots.delete(snapshot.id)
        assert daemon.site.captures.statistics() == {"held": 0}


async def test_who_goes_back_to_a_snapshot_while_it_is_copied_is_there_and_the_copy_is_as_it_was(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        await daemon.fleet.create("src", daemon.spec)
        await daemon.run("src", "write", "when", "then")
        await daemon.fleet.stop("src")
        snapshot = await daemon.snapshots.create("src", SnapshotKind.STOPPED, "then", {})
        await daemon.fleet.start("src")
        await daemon.run("src", "write", "when", "later")
        record = (await daemon.fleet.stop("src")).record
        layer = daemon.site.layers.create_on(snapshot.point.layer, record.spec.overlay_bytes)
        create_on = daemon.site.layers.create_on

        def go_back_meanwhile(*arguments: Any) -> LayerId:
            """Tell of it after the copy has looked what to copy, and before it says what is written to."""
            monkeypatch.undo()
            daemon.fleet._actors[record.id].tell(Rewound(record.spec, layer, None))
            return create_on(*arguments)

        monkeypatch.setattr(daemon.site.layers, "create_on", go_back_meanwhile)
        (outcome,) = await daemon.fleet.fork("src", ["child"])
        assert outcome.error is None
        assert daemon.fleet.get("src").record.layer == layer
        for name, when in (("src", "then"), ("child", "later")):
            await daemon.fleet.start(name)
            assert await daemon.run(name, "read", "when") == when
            await daemon.fleet.delete(name)
        await daemon.snapshots.delete("then")
        assert world.leftovers() == before


@pytest.mark.parametrize("left", ["VMM", "admission"])
async def test_what_a_sleeper_left_on_the_host_goes_when_it_is_put_back(
    world: World, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.fleet.stop("src")
        await daemon.snapshots.create("src", SnapshotKind.STOPPED, "cold", {})
        await daemon.fleet.start("src")
        with monkeypatch.context() as patch:
            if left == "VMM":
                for _ in range(2):  # When its memory is stored, and when what it held is given back.
                    daemon.faults.fail("kill", VmmFailed("no"))
            else:
                revoke = AsyncMock(side_effect=FirewallFailed("no"))
                patch.setattr(daemon.site.network._firewall, "revoke", revoke)
            await daemon.fleet.standby("src")
            while not daemon.fleet.get("src").record.state_error:
                await anyio.lowlevel.checkpoint()
        left_count = {kind: len(world.leftovers()[kind]) for kind in ("processes", "admissions")}
        assert left_count == {"processes": int(left == "VMM"), "admissions": 1}
        view = await daemon.snapshots.restore("src", "cold")
        assert (view.record.state, view.record.state_error) == (State.STOPPED, "")
        await settled(world, processes=0, taps=0, admissions=0, captures=0)
        await daemon.fleet.start("src")
        assert await daemon.is_well("src")


async def test_names_are_unique_among_the_snapshots_of_one_instance(world: World) -> None:
    async with world.daemon() as daemon:
        for name in ("a", "b"):
            await daemon.fleet.create(name, daemon.spec)
            await daemon.fleet.stop(name)
            await daemon.snapshots.create(name, SnapshotKind.STOPPED, "first", {})
        with pytest.raises(SnapshotNameTaken):
            await daemon.snapshots.create("a", SnapshotKind.STOPPED, "first", {})
        with pytest.raises(SnapshotAmbiguous):
            daemon.snapshots.get("first")
        with pytest.raises(SnapshotNotFound):
            daemon.snapshots.get("second")
        (of_b,) = daemon.snapshots.list(source="b")
        assert daemon.snapshots.get(of_b.id[:8]) == of_b
        with pytest.raises(ForeignSnapshot):
            await daemon.snapshots.restore("a", of_b.id)


async def test_of_two_who_want_one_name_exactly_one_gets_it(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        results: list[object] = []

        async def take() -> None:
            try:
                results.append(await daemon.snapshots.create("src", SnapshotKind.STANDBY, "one", {}))
            except SnapshotNameTaken as error:
                results.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(take)
            group.start_soon(take)
        assert sum(isinstance(result, SnapshotNameTaken) for result in results) == 1
        assert len(daemon.snapshots.list()) == 1


async def test_a_snapshot_that_fails_leaves_its_name_free_and_its_source_running(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        daemon.faults.fail("copy_rest", VmmFailed("no"))
        with pytest.raises(VmmFailed):
            await daemon.snapshots.create("src", SnapshotKind.STANDBY, "one", {})
        assert await daemon.is_well("src")
        await settled(world, captures=0, snapshots=0, journal=0)
        await daemon.snapshots.create("src", SnapshotKind.STANDBY, "one", {})


async def test_what_an_instance_has_not_cannot_be_kept(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        with pytest.raises(WrongState) as caught:
            await daemon.snapshots.create("src", SnapshotKind.STOPPED, None, {})
        assert caught.value.remedy == "take one of kind Standby, or: ramet stop src"
        await daemon.fleet.standby("src")
        with pytest.raises(WrongState) as caught:
            await daemon.snapshots.create("src", SnapshotKind.STOPPED, None, {})
        assert caught.value.remedy.endswith("ramet restore src && ramet stop src")
        await daemon.fleet.restore("src")
        await daemon.fleet.stop("src")
        with pytest.raises(WrongState) as caught:
            await daemon.snapshots.create("src", SnapshotKind.STANDBY, None, {})
        assert caught.value.remedy == "take one of kind Stopped, or: ramet start src"
        assert daemon.snapshots.list() == []


async def test_what_has_just_fallen_asleep_goes_back_and_starts(world: World) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        await daemon.fleet.create("src", daemon.spec)
        await daemon.run("src", "write", "when", "first")
        await daemon.snapshots.create("src", SnapshotKind.STANDBY, "warm", {})
        await daemon.run("src", "write", "when", "second")
        await daemon.fleet.stop("src")
        await daemon.snapshots.create("src", SnapshotKind.STOPPED, "cold", {})
        await daemon.snapshots.restore("src", "warm")
        await daemon.fleet.standby("src")
        view = await daemon.snapshots.restore("src", "cold")
        assert view.record.state is State.STOPPED
        view = await daemon.fleet.start("src")
        assert view.record.state is State.RUNNING, view.record.state_error
        assert await daemon.run("src", "read", "when") == "second"
        await daemon.fleet.delete("src")
        await daemon.snapshots.delete("warm")
        await daemon.snapshots.delete("cold")
        await settled(world, captures=0)
        assert world.leftovers() == before


async def test_it_is_known_for_how_long_a_workload_stood_still(world: World) -> None:
    async with world.daemon() as daemon:
        view = await daemon.fleet.create("src", daemon.spec)
        probes = Probes(daemon.site.network, daemon.fleet.open_exec, daemon.site.rigs)

        def stood_still_s() -> float:
            return probes.stood_still_s(view.record.id)

        assert stood_still_s() == 0.0
        hold = daemon.faults.hold("save_devices")
        async with anyio.create_task_group() as group:
            group.start_soon(daemon.snapshots.create, "src", SnapshotKind.STANDBY, None, {})
            await hold.wait_reached()
            before = stood_still_s()
            await anyio.wait_all_tasks_blocked()
            assert stood_still_s() > before > 0.0
            hold.release()
        after = stood_still_s()
        assert after > before
        await anyio.wait_all_tasks_blocked()
        assert stood_still_s() == after
