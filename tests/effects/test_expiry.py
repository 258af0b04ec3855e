"""Instances whose time was up while there was no daemon are removed by the next, with all they had."""

import time
from dataclasses import replace

import anyio
import pytest

from ramet.core.spec import State
from ramet.policies.expiry import ExpiryKeeper
from tests.effects.test_standby import settled
from tests.effects.world import World, performer_of

pytestmark = [pytest.mark.anyio, pytest.mark.netns]


@pytest.mark.parametrize("state", [State.RUNNING, State.STANDBY, State.STOPPED])
async def test_what_was_due_without_a_daemon_is_removed_by_the_next(world: World, state: State) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        spec = replace(daemon.spec, expires_at=time.time() + 0.01)
        await daemon.fleet.create("short", spec)
        await daemon.fleet.create("long", daemon.spec)
        await daemon.fleet.bring_to("short", State.RUNNING)
        match state:
            case State.STANDBY:
                await daemon.fleet.standby("short")
            case State.STOPPED:
                await daemon.fleet.stop("short")
    async with world.daemon() as daemon, anyio.create_task_group() as group:
        keeper = ExpiryKeeper(daemon.fleet)
        performer_of(daemon.fleet).watch(keeper.see)
        group.start_soon(keeper.run, [view.record for view in daemon.fleet.list()])
        await settled(world, records=1, folders=1, processes=1, journal=0, captures=0)
        (left,) = daemon.fleet.list()
        assert (left.record.name, left.record.state) == ("long", State.RUNNING)
        await daemon.fleet.delete("long")
        assert world.leftovers() == before
        group.cancel_scope.cancel()
