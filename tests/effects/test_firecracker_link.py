"""A Firecracker whose guest's memory is put together after its load: nothing comes to its TAP before."""

import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ramet.vmm.rest_vm import Waiting
from tests.effects.rest_world import FirecrackerWorld
from tests.effects.world import new_folder

pytestmark = [pytest.mark.anyio, pytest.mark.netns]


@pytest.fixture
async def world(images: Path) -> AsyncIterator[FirecrackerWorld]:
    world = FirecrackerWorld(new_folder(), images)
    yield world
    await world.aclose()


def is_up(tap_name: str) -> bool:
    told = subprocess.check_output(["ip", "-json", "link", "show", tap_name])
    return "UP" in json.loads(told)[0]["flags"]


async def test_a_tap_is_down_until_the_changes_of_a_second_sleep_are_laid_over(
    world: FirecrackerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    lay_over, found = Waiting.lay_over, list[bool]()

    def look(waiting: Waiting, pid: int) -> int:
        assert waiting.machine.nic is not None
        assert waiting.machine.nic.tap_name is not None
        found.append(is_up(waiting.machine.nic.tap_name))
        return lay_over(waiting, pid)

    monkeypatch.setattr(Waiting, "lay_over", look)
    async with world.daemon() as daemon:
        record = (await daemon.fleet.create("src", daemon.spec)).record
        for _ in range(2):
            await daemon.fleet.standby("src")
            await daemon.fleet.restore("src")
            assert is_up(daemon.site.network.endpoint(record.id).tap_name)
    assert found == [False]
