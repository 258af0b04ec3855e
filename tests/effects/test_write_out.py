"""Whoever waits for a guest to write out what it has not written waits longer if its disks are limited."""

from dataclasses import replace

import anyio
import anyio.lowlevel
import pytest

from ramet.effects import end
from ramet.effects.end import shut_down
from ramet.effects.site import Rig
from ramet.effects.write_out import write_out_s
from ramet.guest.channel import SYNC_TIMEOUT_S, Channel
from tests.effects.world import World

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

RATE_BYTES_PER_S = 1_000_000


async def test_a_capture_waits_for_all_that_may_be_unwritten(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, waits_s = Channel.sync, list[float]()

    async def told(channel: Channel, *, timeout_s: float) -> None:
        waits_s.append(timeout_s)
        await sync(channel, timeout_s=timeout_s)

    monkeypatch.setattr(Channel, "sync", told)
    async with world.daemon() as daemon:
        limited = replace(daemon.spec, disk_io_bytes_per_s=RATE_BYTES_PER_S)
        for name, spec in (("fast", daemon.spec), ("slow", limited)):
            await daemon.fleet.create(name, spec)
            await daemon.fleet.standby(name)
    assert waits_s == [SYNC_TIMEOUT_S, SYNC_TIMEOUT_S + write_out_s(limited)]
    assert write_out_s(limited) == pytest.approx(limited.memory_bytes / 5 / RATE_BYTES_PER_S)


class SlowGuest:
    """A guest, its channel and its VMM in one: it takes the request to power off, and a while."""

    def __init__(self) -> None:
        self.is_off = self.is_killed = False

    async def channel(self, timeout_s: float) -> "SlowGuest":
        return self

    async def shutdown(self, *, grace_s: float) -> bool:
        return True

    @property
    def vm(self) -> "SlowGuest":
        return self

    async def wait_exited(self) -> None:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        self.is_off = True

    async def kill(self) -> None:
        self.is_killed = not self.is_off


@pytest.mark.parametrize("patience_s", [0.0, 60.0])
async def test_a_guest_that_still_writes_is_not_killed(
    monkeypatch: pytest.MonkeyPatch, patience_s: float
) -> None:
    monkeypatch.setattr(end, "STOP_GRACE_S", 0.0)
    monkeypatch.setattr(end, "POWER_OFF_TIMEOUT_S", 0.0)
    guest = SlowGuest()
    rig: Rig = guest  # type: ignore[assignment]
    await shut_down(rig, patience_s)
    assert guest.is_killed == (patience_s == 0)
