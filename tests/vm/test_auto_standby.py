"""A real guest sleeps by itself when nobody is connected to it, and not before."""

import asyncio
import json
import socket
import time
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from ramet.client import Client
from ramet.core.auto_standby import AutoStandby
from ramet.core.spec import State
from ramet.core.units import parse_duration
from ramet.instance.fleet_types import ExecCommand
from ramet.policies.auto_standby import Status
from ramet.wire_api.auto_standby import AutoStandbyPolicy
from tests.vm.daemon import own_daemon
from tests.vm.images import HTTP_PORT, IMAGE
from tests.vm.site import Children, Site
from tests.waiting import until

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

NAME = "dozing"
TIMEOUT_S = 60.0


async def connected(ip: str) -> socket.socket:
    """Connect to a guest's server as soon as it serves."""
    with anyio.fail_after(TIMEOUT_S):
        while True:
            client = socket.socket()
            client.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(client, (ip, HTTP_PORT))
            except ConnectionRefusedError:
                client.close()
            else:
                return client


async def test_a_guest_that_nobody_is_connected_to_sleeps_and_is_as_before_when_it_is_woken(
    site: Site, children: Children
) -> None:
    idle, fleet = site.parts.keepers.idle, site.fleet
    children.names.append(NAME)
    await fleet.create(NAME, replace(site.spec(), auto_standby=AutoStandby(True, 1.0)))
    with await connected(site.ip_of(NAME)):
        await until(lambda: idle.status(NAME).inbound_count == 1)
        assert idle.status(NAME).verdict.status is Status.ACTIVE
        await site.sh(NAME, "echo kept >/dev/shm/kept")
        assert fleet.get(NAME).record.state is State.RUNNING
    assert (await fleet.wait(NAME, State.STANDBY, TIMEOUT_S)).state is State.STANDBY
    assert idle.status(NAME).last_inbound_at is not None

    # It wakes, and an open command keeps it awake for as long as it is open.
    await fleet.restore(NAME)
    session = await fleet.open_exec(NAME, ExecCommand(("cat", "/dev/shm/kept")))
    assert [chunk async for _, chunk in session.output()] == [b"kept\n"]
    assert idle.status(NAME).verdict.status is Status.ACTIVE
    await session.aclose()
    assert idle.status(NAME).verdict.status is not Status.ACTIVE
    assert (await fleet.wait(NAME, State.STANDBY, TIMEOUT_S)).state is State.STANDBY


def test_how_long_it_was_idle_is_known_after_a_restart_and_not_after_a_kill(
    kernel_package: Path | None,
) -> None:
    with own_daemon(kernel_package) as daemon:
        daemon.start()
        daemon.client.import_image(str(daemon.folder / "image"), IMAGE)
        daemon.boot(NAME, auto_standby=AutoStandbyPolicy(enabled=True, idle_timeout="1h"))
        instance = daemon.client.get(NAME).id
        daemon.stop()
        left = daemon.data / "idle.json"
        said = json.loads(left.read_text())
        assert said.keys() == {instance}
        said[instance]["idle_s"] += 1800  # As if it had been idle before for so much longer.
        left.write_text(json.dumps(said))

        daemon.start()
        assert remaining_s(daemon.client) <= 1800
        assert not left.exists()
        daemon.kill()
        daemon.start()
        assert remaining_s(daemon.client) > 1800


def remaining_s(client: Client) -> float:
    """Return in how many seconds an idle instance sleeps, as soon as its connections are known."""
    until = time.monotonic() + TIMEOUT_S
    while (found := client.auto_standby_status(NAME)).status == Status.ERROR:
        assert time.monotonic() < until, found
    assert found.countdown_remaining is not None, found
    return parse_duration(found.countdown_remaining)
