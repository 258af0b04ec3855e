"""Children made ahead of their fork: who gets one, when none is of use, and that nothing is left of them."""

import os
import signal

import anyio
import anyio.lowlevel
import pytest

from ramet.admission.demand import Resource
from ramet.admission.ledger import Limit
from ramet.core.errors import Broken, Invalid
from ramet.core.snapshot import SnapshotKind
from ramet.core.spec import State
from ramet.instance.fleet_types import ForkPoolStatus
from ramet.vmm.port import VmmFailed
from tests.effects.test_sharing import Forks
from tests.effects.world import MEMORY_BYTES, Daemon, World
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

TIMEOUT_S = 20.0


def status(daemon: Daemon, name: str = "src") -> ForkPoolStatus:
    found = daemon.fleet.get(name).fork_pool
    assert found is not None
    return found


async def pooled(daemon: Daemon, size: int) -> None:
    """Make "src" and have its pool filled."""
    await daemon.fleet.create("src", daemon.spec)
    await daemon.fleet.set_fork_pool("src", size)
    await until(lambda: status(daemon).waiting_count == size)


def waiting_pids(daemon: Daemon) -> set[int]:
    berths = daemon.fleet._host.pools.berths()  # type: ignore[attr-defined]
    return {berth.vm.runtime.pid for berth in berths if berth.vm is not None}


async def emptied(daemon: Daemon, world: World, *names: str) -> None:
    """Have all instances deleted, and nothing left of any, or of a pool."""
    for name in names:
        await daemon.fleet.delete(name)
    await until(lambda: not any(world.leftovers().values()))
    assert daemon.site.admission.ledger.owner_count == 0


async def test_a_fork_takes_a_vmm_that_was_started_before_it_was_asked_for(world: World) -> None:
    async with world.daemon() as daemon:
        await pooled(daemon, 2)
        await daemon.run("src", "set", "word", "late")
        await daemon.run("src", "write", "file", "late")
        waiting = set(world.processes())
        daemon.faults.calls.clear()
        outcomes = await daemon.fleet.fork("src", ["a", "b"])
        assert [outcome.error for outcome in outcomes] == [None, None]
        assert "start_waiting" not in daemon.faults.calls[: daemon.faults.calls.index("load") + 2]
        runtimes = [daemon.fleet.get(name).record.runtime for name in ("a", "b")]
        assert {runtime.pid for runtime in runtimes if runtime} <= waiting
        for name in ("a", "b"):
            assert await daemon.run(name, "get", "word") == "late"
            assert await daemon.run(name, "read", "file") == "late"
            assert (await daemon.memory(name))["hostname"] == name
        assert status(daemon).taken_count == 2
        await emptied(daemon, world, "src", "a", "b")


async def test_a_burst_larger_than_the_pool_shares_its_capture(world: World) -> None:
    async with world.daemon() as daemon:
        await pooled(daemon, 2)
        daemon.faults.calls.clear()
        outcomes = await daemon.fleet.fork("src", ["a", "b", "c", "d"])
        assert [outcome.error for outcome in outcomes] == [None] * 4
        assert daemon.faults.calls.count("copy_ahead") == 1
        assert (status(daemon).taken_count, status(daemon).missed_count) == (2, 2)
        await until(lambda: status(daemon).waiting_count == 2)
        await emptied(daemon, world, "src", "a", "b", "c", "d")


async def test_what_a_burst_leaves_over_is_ended_and_the_pool_filled_for_the_next_capture(
    world: World,
) -> None:
    async with world.daemon() as daemon:
        await pooled(daemon, 3)
        before = set(world.processes())
        for name in ("a", "b"):
            assert (await daemon.fleet.fork("src", [name]))[0].error is None
            await until(lambda: status(daemon).waiting_count == 3)
        assert status(daemon).taken_count == 2
        kept = {record.runtime.pid for record in (v.record for v in daemon.fleet.list()) if record.runtime}
        assert set(world.processes()) & before <= kept
        assert len(world.processes()) == 3 + 3
        await emptied(daemon, world, "src", "a", "b")


async def test_a_fork_asked_for_while_the_capture_is_taken_still_finds_a_berth(world: World) -> None:
    async with world.daemon() as daemon:
        await pooled(daemon, 2)
        ahead = daemon.faults.hold("copy_ahead")
        async with anyio.create_task_group() as group:
            forks = Forks(daemon, group)
            await forks.ask("first")
            await ahead.wait_reached()
            await forks.ask("second")
            ahead.release()
        assert [outcome.error for outcome in forks.outcomes.values()] == [None, None]
        assert status(daemon).taken_count == 2


async def test_a_child_that_comes_aboard_the_next_capture_leaves_its_berth_and_is_made_whole(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.daemon() as daemon:
        await pooled(daemon, 1)
        # The berth is of a capture that was begun and is over when the child comes aboard.
        pools = daemon.fleet._host.pools  # type: ignore[attr-defined]
        claim = pools.claim

        def claim_too_late(*arguments: object) -> object:
            berth = claim(*arguments)
            if berth is not None:
                source = daemon.fleet.get("src").record
                assert pools.hand_over(source.id, source.layer) is berth.capture
                pools.close_doors(source.id)
            return berth

        monkeypatch.setattr(pools, "claim", claim_too_late)
        waiting = set(world.processes())
        (outcome,) = await daemon.fleet.fork("src", ["late"])
        assert outcome.error is None
        assert outcome.view is not None
        assert outcome.view.record.runtime is not None
        assert outcome.view.record.runtime.pid not in waiting
        await daemon.run("late", "write", "file", "own")
        (berths,) = {berth.capture for berth in pools.berths()} or {None}
        for generation in pools._pools[daemon.fleet.get("src").record.id]._airborne[:]:
            pools.landed(daemon.fleet.get("src").record.id, generation.capture)
            generation.capture.close()
        assert berths is None
        await emptied(daemon, world, "src", "late")


@pytest.mark.parametrize("how", ["standby", "snapshot", "stop", "none"])
async def test_a_pool_whose_source_changes_its_disk_or_ends_is_emptied(world: World, how: str) -> None:
    async with world.daemon() as daemon:
        await pooled(daemon, 2)
        before = set(world.processes())
        match how:
            case "standby":
                await daemon.fleet.standby("src")
            case "snapshot":
                await daemon.snapshots.create("src", SnapshotKind.STANDBY, "kept", {})
            case "stop":
                await daemon.fleet.stop("src")
            case _:
                await daemon.fleet.set_fork_pool("src", 0)
        runtime = daemon.fleet.get("src").record.runtime
        left = set() if runtime is None else {runtime.pid}
        await until(lambda: set(world.processes()) & before == left)
        if how == "snapshot":
            await until(lambda: status(daemon).waiting_count == 2)
            assert (await daemon.fleet.fork("src", ["a"]))[0].error is None
            assert status(daemon).taken_count == 1
            await daemon.fleet.delete("a")
            await daemon.snapshots.delete("kept")
        if how == "standby":
            await daemon.fleet.restore("src")
            await until(lambda: status(daemon).waiting_count == 2)
        await emptied(daemon, world, "src")


async def test_a_smaller_pool_keeps_what_it_still_wants(world: World) -> None:
    async with world.daemon() as daemon:
        await pooled(daemon, 3)
        before = set(world.processes())
        await daemon.fleet.set_fork_pool("src", 1)
        await until(lambda: len(world.processes()) == 2)
        assert set(world.processes()) <= before
        await emptied(daemon, world, "src")


async def test_berths_are_counted_and_a_pool_takes_only_what_is_free(world: World) -> None:
    async with world.daemon() as daemon:
        daemon.site.admission.ledger.limit(Limit(Resource.MEMORY, 3 * MEMORY_BYTES))
        await daemon.fleet.create("src", daemon.spec)
        await daemon.fleet.set_fork_pool("src", 5)
        await until(lambda: status(daemon).error)
        assert status(daemon).waiting_count == 2
        assert daemon.site.admission.ledger.total_of(Resource.MEMORY) == 3 * MEMORY_BYTES
        assert "there is not enough memory" in status(daemon).error
        await emptied(daemon, world, "src")


async def test_a_berth_that_cannot_be_made_leaves_nothing_and_is_made_later(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ramet.effects.fork_pools.RETRY_S", 0.0)
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        daemon.faults.fail("start_waiting", VmmFailed("on demand"))
        await daemon.fleet.set_fork_pool("src", 1)
        await until(lambda: status(daemon).waiting_count == 1)
        assert status(daemon).error == ""
        assert len(world.leftovers()["folders"]) == 2
        await emptied(daemon, world, "src")


async def test_a_capture_that_fails_takes_its_berths_with_it(world: World) -> None:
    async with world.daemon() as daemon:
        await pooled(daemon, 2)
        daemon.faults.fail("save_devices", VmmFailed("on demand"))
        (outcome,) = await daemon.fleet.fork("src", ["a"])
        assert isinstance(outcome.error, Broken)
        await until(lambda: status(daemon).waiting_count == 2)
        assert (await daemon.fleet.fork("src", ["a"]))[0].error is None
        await emptied(daemon, world, "src", "a")


async def test_a_berth_whose_vmm_ends_is_replaced(world: World) -> None:
    async with world.daemon() as daemon:
        await pooled(daemon, 1)
        runtime = daemon.fleet.get("src").record.runtime
        assert runtime is not None
        (pid,) = set(world.processes()) - {runtime.pid}
        os.kill(pid, signal.SIGKILL)
        await until(lambda: pid not in waiting_pids(daemon) and status(daemon).waiting_count == 1)
        assert (await daemon.fleet.fork("src", ["a"]))[0].error is None
        await emptied(daemon, world, "src", "a")


async def test_a_pool_that_nobody_forks_from_rests_and_wakes_with_the_next_fork(world: World) -> None:
    async with world.daemon() as daemon:
        daemon.site.fork_pool_idle_s = 0.0
        await daemon.fleet.create("src", daemon.spec)
        await daemon.fleet.set_fork_pool("src", 2)
        await until(lambda: status(daemon).is_resting)
        await until(lambda: len(world.processes()) == 1)
        daemon.site.fork_pool_idle_s = 60.0
        assert (await daemon.fleet.fork("src", ["a"]))[0].error is None
        await until(lambda: status(daemon).waiting_count == 2)
        await emptied(daemon, world, "src", "a")


async def test_a_daemon_that_leaves_ends_its_berths_and_the_next_fills_the_pool_again(world: World) -> None:
    async with world.daemon() as daemon:
        await pooled(daemon, 2)
    assert len(world.processes()) == 1
    assert not world.leftovers()["journal"]
    async with world.daemon() as daemon:
        await until(lambda: status(daemon).waiting_count == 2)
        assert (await daemon.fleet.fork("src", ["a"]))[0].error is None
        assert daemon.fleet.get("a").fork_pool is None
        await emptied(daemon, world, "src", "a")


async def test_a_name_that_is_taken_costs_no_berth(world: World) -> None:
    async with world.daemon() as daemon:
        await pooled(daemon, 1)
        (outcome,) = await daemon.fleet.fork("src", ["src"])
        assert outcome.error is not None
        assert outcome.error.code == "name_taken"
        assert status(daemon).waiting_count == 1
        assert daemon.fleet.get("src").record.state is State.RUNNING
        await emptied(daemon, world, "src")


async def snapshot_pooled(daemon: Daemon, size: int) -> str:
    """Take a snapshot of an instance with "kept" in its memory and on its disk, and have its pool filled."""
    await daemon.fleet.create("src", daemon.spec)
    await daemon.run("src", "set", "word", "kept")
    await daemon.run("src", "write", "file", "kept")
    snapshot = await daemon.snapshots.create("src", SnapshotKind.STANDBY, "warm", {})
    await daemon.fleet.delete("src")
    daemon.snapshots.set_fork_pool(snapshot.id, size)
    await until(lambda: snapshot_status(daemon).waiting_count == size)
    return snapshot.id


def snapshot_status(daemon: Daemon) -> ForkPoolStatus:
    found = daemon.snapshots.fork_pool(daemon.snapshots.get("warm"))
    assert found is not None
    return found


async def test_forks_of_a_snapshot_take_what_waits_and_leave_the_rest_waiting(world: World) -> None:
    async with world.daemon() as daemon:
        await snapshot_pooled(daemon, 3)
        waiting = set(world.processes())
        outcomes = await daemon.snapshots.fork("warm", ["a", "b"])
        assert [outcome.error for outcome in outcomes] == [None, None]
        for name in ("a", "b"):
            view = daemon.fleet.get(name)
            assert view.record.state is State.RUNNING
            assert view.record.runtime is not None
            assert view.record.runtime.pid in waiting
            assert await daemon.run(name, "get", "word") == await daemon.run(name, "read", "file") == "kept"
            memory = await daemon.memory(name)
            assert (memory["hostname"], memory["ip"]) == (name, view.ip)
        await until(lambda: snapshot_status(daemon).waiting_count == 3)
        assert len(waiting & set(world.processes())) == 3  # Two of them are children now; one waits still.
        assert snapshot_status(daemon).taken_count == 2
        await daemon.fleet.standby("a")
        await daemon.fleet.restore("a")
        assert await daemon.run("a", "get", "word") == "kept"
        await daemon.snapshots.delete("warm")
        await emptied(daemon, world, "a", "b")


@pytest.mark.parametrize("target", [State.STANDBY, State.STOPPED])
async def test_a_fork_that_is_not_to_run_takes_no_vmm(world: World, target: State) -> None:
    async with world.daemon() as daemon:
        await snapshot_pooled(daemon, 1)
        (outcome,) = await daemon.snapshots.fork("warm", ["a"], target=target)
        assert outcome.error is None
        assert snapshot_status(daemon).waiting_count == 1
        await daemon.snapshots.delete("warm")
        await emptied(daemon, world, "a")


async def test_a_fork_of_a_snapshot_that_fails_in_its_berth_leaves_nothing(world: World) -> None:
    async with world.daemon() as daemon:
        await snapshot_pooled(daemon, 1)
        daemon.faults.fail("load", VmmFailed("on demand"))
        (outcome,) = await daemon.snapshots.fork("warm", ["a"])
        assert isinstance(outcome.error, Broken)
        await until(lambda: snapshot_status(daemon).waiting_count == 1)
        assert (await daemon.snapshots.fork("warm", ["a"]))[0].error is None
        assert await daemon.run("a", "get", "word") == "kept"
        await daemon.snapshots.delete("warm")
        await emptied(daemon, world, "a")


async def test_a_copy_that_cannot_be_made_ends_its_berth(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.daemon() as daemon:
        await snapshot_pooled(daemon, 1)

        def fail(*_: object) -> None:
            raise Broken("on demand")

        with monkeypatch.context() as patch:
            patch.setattr("ramet.effects.copy.name_folder", fail)
            (outcome,) = await daemon.snapshots.fork("warm", ["a"])
        assert isinstance(outcome.error, Broken)
        await until(lambda: snapshot_status(daemon).waiting_count == 1)
        await daemon.snapshots.delete("warm")
        await emptied(daemon, world)


async def test_a_child_that_is_deleted_before_it_wakes_takes_its_berth_with_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.daemon() as daemon:
        await snapshot_pooled(daemon, 1)

        async def refuse(*_: object) -> None:
            raise Broken("on demand")

        with monkeypatch.context() as patch:
            patch.setattr(daemon.fleet, "_wake", refuse)
            (outcome,) = await daemon.snapshots.fork("warm", ["a"])
        assert isinstance(outcome.error, Broken)
        assert daemon.fleet._host.pools._claimed == {}  # type: ignore[attr-defined]
        await daemon.snapshots.delete("warm")
        await emptied(daemon, world)


async def test_a_snapshots_pool_is_kept_over_a_restart_and_goes_with_the_snapshot(world: World) -> None:
    async with world.daemon() as daemon:
        await snapshot_pooled(daemon, 1)
    assert not world.processes()
    async with world.daemon() as daemon:
        await until(lambda: snapshot_status(daemon).waiting_count == 1)
        await daemon.snapshots.delete("warm")
        await emptied(daemon, world)


async def test_a_snapshot_without_memory_has_no_pool(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.fleet.stop("src")
        await daemon.snapshots.create("src", SnapshotKind.STOPPED, "cold", {})
        with pytest.raises(Invalid, match="no memory"):
            daemon.snapshots.set_fork_pool("cold", 1)
        assert daemon.snapshots.set_fork_pool("cold", 0).fork_pool == 0
        assert daemon.snapshots.fork_pool(daemon.snapshots.get("cold")) is None
