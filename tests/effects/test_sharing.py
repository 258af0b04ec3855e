"""A burst of forks costs one capture, and no fork misses what happened before it was asked for."""

import anyio
import pytest

from ramet.core.errors import Broken
from ramet.instance.fleet_types import ForkOutcome
from ramet.vmm.port import VmmFailed
from tests.effects.world import Daemon, World

pytestmark = [pytest.mark.anyio, pytest.mark.netns]


class Forks:
    """Forks under way."""

    def __init__(self, daemon: Daemon, group: anyio.abc.TaskGroup) -> None:
        self._daemon, self._group = daemon, group
        self.outcomes: dict[str, ForkOutcome] = {}

    async def ask(self, name: str) -> None:
        """Ask for one child; returns when its fork waits for a capture."""
        self._group.start_soon(self._fork, name)
        await anyio.wait_all_tasks_blocked()

    async def _fork(self, name: str) -> None:
        (self.outcomes[name],) = await self._daemon.fleet.fork("src", [name])


async def test_forks_asked_before_the_pause_share_a_capture_and_one_asked_in_it_gets_the_next(
    world: World,
) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        ahead, paused = daemon.faults.hold("copy_ahead"), daemon.faults.hold("stop")
        async with anyio.create_task_group() as group:
            forks = Forks(daemon, group)
            await forks.ask("first")
            await ahead.wait_reached()
            await daemon.run("src", "set", "word", "before the pause")
            await forks.ask("second")
            ahead.release()
            await paused.wait_reached()
            assert daemon.faults.calls.count("copy_ahead") == 1
            await forks.ask("third")
            paused.release()
        assert [outcome.error for outcome in forks.outcomes.values()] == [None] * 3
        assert daemon.faults.calls.count("copy_ahead") == 2
        assert await daemon.run("second", "get", "word") == "before the pause"


async def test_what_was_written_before_a_fork_was_asked_for_is_in_the_child(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        landing = daemon.faults.hold("cont", late=True)
        async with anyio.create_task_group() as group:
            forks = Forks(daemon, group)
            await forks.ask("early")
            await landing.wait_reached()  # The capture is taken, but nobody has it yet.
            await daemon.run("src", "set", "word", "late")
            await daemon.run("src", "write", "file", "late")
            await forks.ask("late")
            landing.release()
        assert await daemon.run("late", "get", "word") == "late"
        assert await daemon.run("late", "read", "file") == "late"
        with pytest.raises(AssertionError):
            await daemon.run("early", "get", "word")


async def test_captures_of_one_source_never_overlap(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        async with anyio.create_task_group() as group:
            forks = Forks(daemon, group)
            for index in range(4):
                pause = daemon.faults.hold("stop")
                await forks.ask(f"child{index}")
                await pause.wait_reached()
                await forks.ask(f"next{index}")
                pause.release()
        assert [outcome.error for outcome in forks.outcomes.values()] == [None] * 8
        captures = [call for call in daemon.faults.calls if call in ("prepare_disk", "cont")]
        assert captures == ["prepare_disk", "cont"] * (len(captures) // 2)


async def test_a_capture_that_fails_fails_its_passengers_and_not_those_of_the_next(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        daemon.faults.fail("save_devices", VmmFailed("on demand"))
        pause = daemon.faults.hold("stop")
        async with anyio.create_task_group() as group:
            forks = Forks(daemon, group)
            await forks.ask("unlucky")
            await pause.wait_reached()
            await forks.ask("lucky")
            pause.release()
        assert isinstance(forks.outcomes["unlucky"].error, Broken)
        assert forks.outcomes["lucky"].error is None


async def test_a_child_still_gets_its_disk_when_its_source_went_on_to_another_capture(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.run("src", "write", "file", "old")
        slow = daemon.faults.hold("start_waiting")
        async with anyio.create_task_group() as group:
            forks = Forks(daemon, group)
            await forks.ask("slow")
            await slow.wait_reached()
            await daemon.run("src", "write", "file", "new")
            await daemon.fleet.fork("src", ["quick"])
            await daemon.fleet.delete("quick")
            await daemon.fleet.delete("src")
            slow.release()
        assert forks.outcomes["slow"].error is None
        assert await daemon.run("slow", "read", "file") == "old"
