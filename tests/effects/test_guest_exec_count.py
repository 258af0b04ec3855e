"""How many commands are open in each guest, as whoever watches is told."""

import pytest

from ramet.core.errors import RametError
from ramet.core.ids import InstanceId
from ramet.instance.fleet_types import ExecCommand
from tests.effects.world import World, performer_of

pytestmark = [pytest.mark.anyio, pytest.mark.netns]


async def test_a_command_counts_until_its_session_is_closed(world: World) -> None:
    async with world.daemon() as daemon:
        record = (await daemon.fleet.create("src", daemon.spec)).record
        told: list[tuple[InstanceId, int]] = []
        performer = performer_of(daemon.fleet)
        performer.watch_execs(lambda one: told.append((one, performer.exec_count(one))))
        session = await daemon.fleet.open_exec("src", ExecCommand(("cat",)))
        assert told == [(record.id, 1)]
        await session.aclose()
        await session.aclose()
        assert told == [(record.id, 1), (record.id, 0)]
        with pytest.raises(RametError):
            await daemon.fleet.open_exec("src", ExecCommand(()))
        assert performer.exec_count(record.id) == 0
