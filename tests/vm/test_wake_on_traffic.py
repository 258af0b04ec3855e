"""A real guest that sleeps is woken by the first packet of a connection, which it answers itself."""

import asyncio
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from ramet.core.auto_standby import AutoStandby
from ramet.core.spec import State
from ramet.wire_api.auto_standby import AutoStandbyPolicy
from tests.vm.daemon import own_daemon
from tests.vm.images import HTTP_PORT, IMAGE
from tests.vm.site import Children, Site, http_get
from tests.vm.wire import nft
from tests.waiting import until

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

NAME = "napping"
TIMEOUT_S = 60.0
ONCE_PORT = 40_123


@pytest.fixture
def asks_once() -> Iterator[None]:
    """Have no first packet of a connection from port ONCE_PORT be sent again: one that is lost is missed."""
    syn = f"tcp sport {ONCE_PORT} tcp flags & (syn | ack) == syn"
    nft("add", "table", "ip", "once")
    nft("add", "chain", "ip", "once", "output", "{ type filter hook output priority 0; }")
    nft("add", "rule", "ip", "once", "output", f"{syn} limit rate over 1/day burst 1 packets drop")
    yield
    nft("delete", "table", "ip", "once")


async def connect(ip: str, port: int) -> socket.socket:
    """Connect to a guest's server from a port of ours."""
    client = socket.socket()
    client.setblocking(False)
    try:
        client.bind(("", port))
        with anyio.fail_after(TIMEOUT_S):
            await asyncio.get_running_loop().sock_connect(client, (ip, HTTP_PORT))
    except BaseException:
        client.close()
        raise
    return client


async def test_the_first_packet_of_a_connection_wakes_a_sleeper_and_is_answered(
    site: Site, children: Children, asks_once: None
) -> None:
    idle, fleet = site.parts.keepers.idle, site.fleet
    children.names.append(NAME)
    policy = AutoStandby(True, 1.0, wakes_on_traffic=True)
    await fleet.create(NAME, replace(site.spec(), auto_standby=policy))
    await site.wait_for(NAME, f"wget -qO /dev/null http://127.0.0.1:{HTTP_PORT}/alive")
    await site.sh(NAME, "echo kept >/dev/shm/state; echo kept >/var/state")
    ip, instance = site.ip_of(NAME), site.id_of(NAME)
    for port in (ONCE_PORT, 0):  # What has been woken so sleeps again, and is woken again.
        assert (await fleet.wait(NAME, State.STANDBY, TIMEOUT_S)).state is State.STANDBY
        await until(lambda: site.effects.network.is_waiting(instance))
        with await connect(ip, port):
            assert (await http_get(ip, "/cgi-bin/state")).splitlines()[-2:] == ["memory kept", "disk kept"]
            await until(lambda: idle.status(NAME).inbound_count > 0)
            assert fleet.get(NAME).record.state is State.RUNNING
        assert (await site.get_state(NAME))["hostname"] == NAME


def test_a_daemon_that_comes_back_after_it_was_killed_listens_for_its_sleepers(
    kernel_package: Path | None,
) -> None:
    with own_daemon(kernel_package) as daemon:
        daemon.start()
        daemon.client.import_image(str(daemon.folder / "image"), IMAGE)
        daemon.boot(NAME, auto_standby=AutoStandbyPolicy(wake_on_traffic=True))
        serves = f"wget -qO /dev/null http://127.0.0.1:{HTTP_PORT}/alive"
        daemon.sh(
            NAME, f"until {serves}; do sleep 0.1; done; echo kept >/dev/shm/state; echo kept >/var/state"
        )
        daemon.client.standby(NAME)
        daemon.kill()
        daemon.start()
        daemon.wait_armed(NAME)
        network = daemon.client.get(NAME).network
        assert network is not None
        assert network.ip is not None
        with socket.create_connection((network.ip, HTTP_PORT), TIMEOUT_S) as client:
            client.sendall(b"GET /cgi-bin/state HTTP/1.0\r\n\r\n")
            answer = client.makefile("rb").read()
        assert answer.split(b"\n")[-3:-1] == [b"memory kept", b"disk kept"]
        assert daemon.client.get(NAME).state == "Running"
        daemon.client.delete(NAME)
        found = daemon.leftovers()
        assert (found.vmm_count, found.tap_count, found.admitted_count) == (0, 0, 0)
