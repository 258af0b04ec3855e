"""Instances are started again, and asked how they do; a daemon that comes back loses and doubles nothing."""

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import anyio
import pytest

from ramet.core.health import ExecProbe, HealthCheck, HealthStatus, TcpProbe
from ramet.core.restart import RestartPolicy, RestartWhen
from ramet.core.spec import InstanceRecord, State
from ramet.core.supervision import Block, judge_restart
from ramet.daemon.config import Settings
from ramet.daemon.wiring import make_keepers
from tests.effects.world import Daemon, World, performer_of

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

ALWAYS = RestartPolicy(RestartWhen.ALWAYS, 0.1, 3, 600.0)
LATER = replace(ALWAYS, backoff_s=3600.0)
CHECK = HealthCheck("exec", ExecProbe(("exit", "0")), 0.02, 10.0, 0.0, 2, 1)


@asynccontextmanager
async def kept(world: World) -> AsyncIterator[Daemon]:
    """Run a daemon with all of its keepers."""
    async with world.daemon() as daemon, anyio.create_task_group() as group:
        keepers = make_keepers(
            Settings(), daemon.fleet, performer_of(daemon.fleet), daemon.snapshots, daemon.site
        )
        group.start_soon(keepers.run, lambda: [view.record for view in daemon.fleet.list()])
        yield daemon
        group.cancel_scope.cancel()


async def until(daemon: Daemon, is_so: Callable[[InstanceRecord], bool]) -> InstanceRecord:
    with anyio.fail_after(20):
        while not is_so(record := daemon.fleet.get("web").record):
            await anyio.lowlevel.checkpoint()
    return record


async def started(daemon: Daemon, attempts: int) -> InstanceRecord:
    """Return the record when the instance runs after so many attempts."""
    return await until(
        daemon, lambda record: record.state is State.RUNNING and record.restarts.attempts == attempts
    )


def kill(daemon: Daemon) -> None:
    os.kill(daemon.site.rigs[daemon.fleet.get("web").record.id].vm.runtime.pid, signal.SIGKILL)


async def test_one_that_dies_is_started_again_until_it_has_died_too_often(world: World) -> None:
    async with kept(world) as daemon:
        before = world.leftovers()
        await daemon.fleet.create("web", replace(daemon.spec, restart_policy=replace(ALWAYS, attempts_max=2)))
        await daemon.run("web", "write", "kept", "on-disk")
        for attempts in (1, 2):
            kill(daemon)
            record = await started(daemon, attempts)
            assert await daemon.run("web", "read", "kept") == "on-disk"
            assert record.restarts.last_at is not None
        kill(daemon)
        record = await until(daemon, lambda record: record.state is State.STOPPED)
        assert judge_restart(record, 1e12).blocked is Block.ATTEMPTS_EXCEEDED
        assert not (await daemon.fleet.wait("web", State.RUNNING, 20.0)).timed_out  # It cannot come.
        assert (await daemon.fleet.start("web")).record.restarts.attempts == 0
        await daemon.fleet.delete("web")
        assert world.leftovers() == before


async def test_one_that_is_stopped_stays_so_also_while_it_waits_to_be_started_again(world: World) -> None:
    async with kept(world) as daemon:
        await daemon.fleet.create("web", replace(daemon.spec, restart_policy=LATER))
        kill(daemon)
        record = await until(daemon, lambda record: record.state is State.STOPPED)
        assert judge_restart(record, 0.0).next_at is not None
        record = (await daemon.fleet.stop("web")).record
        assert judge_restart(record, 1e12).blocked is Block.MANUAL_STOP
    async with kept(world) as daemon:
        assert judge_restart(daemon.fleet.get("web").record, 1e12).blocked is Block.MANUAL_STOP
        await daemon.fleet.start("web")
        await daemon.fleet.stop("web")
        assert judge_restart(daemon.fleet.get("web").record, 1e12).blocked is Block.MANUAL_STOP


async def test_where_all_are_stopped_none_is_started_again_behind_our_back(world: World) -> None:
    async with kept(world) as daemon:
        await daemon.fleet.create("web", replace(daemon.spec, restart_policy=LATER))
        kill(daemon)
        await until(daemon, lambda record: record.state is State.STOPPED)
        await daemon.fleet.stop_all()
        assert judge_restart(daemon.fleet.get("web").record, 1e12).blocked is Block.MANUAL_STOP


async def test_a_back_off_goes_on_where_it_was_when_the_daemon_comes_back(world: World) -> None:
    async with kept(world) as daemon:
        await daemon.fleet.create("web", replace(daemon.spec, restart_policy=LATER))
        kill(daemon)
        before = await until(daemon, lambda record: record.state is State.STOPPED)
        assert (await daemon.fleet.wait("web", State.RUNNING, 0.01)).timed_out  # It may yet come.
        assert not (await daemon.fleet.wait("web", State.STOPPED, 0.01)).timed_out
    async with kept(world) as daemon:
        record = daemon.fleet.get("web").record
        assert judge_restart(record, 0.0) == judge_restart(before, 0.0)
        assert record.phases == before.phases
        await daemon.fleet.update("web", {"restart_policy": ALWAYS})  # Its time has come.
        await started(daemon, 1)
        assert len(world.processes()) == 1


async def test_one_that_died_without_a_daemon_is_started_by_the_next_once(world: World) -> None:
    async with kept(world) as daemon:
        await daemon.fleet.create("web", replace(daemon.spec, restart_policy=ALWAYS))
        pid = daemon.site.rigs[daemon.fleet.get("web").record.id].vm.runtime.pid
    os.kill(pid, signal.SIGKILL)
    async with kept(world) as daemon:
        record = await until(
            daemon, lambda record: record.state is State.RUNNING and record.runtime is not None
        )
        assert record.restarts.attempts == 1
        assert len(world.processes()) == 1


async def test_a_start_that_the_daemon_leaves_in_the_middle_of_is_made_once_by_the_next(world: World) -> None:
    async with kept(world) as daemon:
        await daemon.fleet.create("web", replace(daemon.spec, restart_policy=ALWAYS))
        hold = daemon.faults.hold("boot")
        kill(daemon)
        await hold.wait_reached()
        assert daemon.fleet.get("web").record.restarts.attempts == 1
    async with kept(world) as daemon:
        await started(daemon, 2)  # The first was begun, and counts.
        assert await daemon.is_well("web")
        assert len(world.processes()) == 1


async def test_children_have_the_policy_and_none_of_what_came_of_it(world: World) -> None:
    async with kept(world) as daemon:
        await daemon.fleet.create("web", replace(daemon.spec, restart_policy=ALWAYS, health_check=CHECK))
        kill(daemon)
        source = await until(daemon, lambda record: record.health is HealthStatus.HEALTHY)
        (outcome,) = await daemon.fleet.fork("web", ["child"])
        assert outcome.view is not None
        child = outcome.view.record
        assert (child.spec.restart_policy, child.spec.health_check) == (ALWAYS, CHECK)
        assert (source.restarts.attempts, child.restarts.attempts, child.restarts.last_at) == (1, 0, None)
        assert source.phases is not None
        assert child.phases is not None
        assert "Stopped" in source.phases.ended_ms
        assert child.phases.ended_ms.keys() == {"Created"}
        (copied,) = await daemon.fleet.fork("web", ["copy"], target=State.STOPPED)
        assert copied.view is not None
        assert judge_restart(copied.view.record, 1e12).next_at is None


async def test_the_unhealthy_are_started_again_and_a_daemon_that_comes_back_knows_how_each_does(
    world: World,
) -> None:
    async with kept(world) as daemon:
        spec = replace(daemon.spec, health_check=CHECK)
        await daemon.fleet.create("web", spec)
        await until(daemon, lambda record: record.health is HealthStatus.HEALTHY)
        assert performer_of(daemon.fleet).exec_count(daemon.fleet.get("web").record.id) == 0
        failing = replace(CHECK, probe=ExecProbe(("exit", "3")))
        await daemon.fleet.update("web", {"health_check": failing})
        await until(daemon, lambda record: record.health is HealthStatus.UNHEALTHY)
        found = daemon.fleet.get("web").health
        assert found is not None
        assert found.last_error == "exited with 3"
        await daemon.fleet.standby("web")
        assert daemon.fleet.get("web").record.health is HealthStatus.UNHEALTHY
        await daemon.fleet.restore("web")
    async with kept(world) as daemon:
        assert daemon.fleet.get("web").record.health is HealthStatus.UNHEALTHY
        await daemon.fleet.update("web", {"restart_policy": ALWAYS})
        record = await started(daemon, 1)
        assert record.restarts.is_failing_health
        await daemon.fleet.update("web", {"health_check": CHECK})
        await until(daemon, lambda record: record.health is HealthStatus.HEALTHY)


async def test_a_port_that_nobody_listens_on_is_told(world: World) -> None:
    async with kept(world) as daemon:
        check = replace(CHECK, kind="tcp", probe=TcpProbe(1), timeout_s=0.1)
        await daemon.fleet.create("web", replace(daemon.spec, health_check=check))
        await until(daemon, lambda record: record.health is HealthStatus.UNHEALTHY)
        found = daemon.fleet.get("web").health
        assert found is not None
        assert found.last_error
        await daemon.fleet.delete("web")
