"""Limits held against real TCP, from a TAP through bridge, NAT and uplink to another namespace and back.

These measure a rate and not our speed: what passes a limiter takes as long as it takes on every host.
"""

import json
import socket
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack
from functools import partial
from typing import Final, Literal

import anyio
import pytest

from ramet.core.ids import InstanceId
from ramet.net.bridge import BridgeConfig
from ramet.net.network import Network
from ramet.net.rates import RateLimits
from tests.net.namespaces import Namespace
from tests.net.pumped import TIMEOUT_S, PumpedGuest, connect, transfer

pytestmark = [pytest.mark.anyio, pytest.mark.netns]
HOST, OUTSIDE, PORT = "192.0.2.1", "192.0.2.9", 5001
MBIT_BYTES = 125_000
MARGIN = 0.10
SECONDS = 3  # What a transfer at its limit takes.

Way = Literal["download", "upload"]
WAYS: Final[tuple[Way, ...]] = ("download", "upload")
Make = Callable[[], Namespace]
Run = Callable[[str], str]


class Host:
    """A network in the test's namespace, with an uplink to a namespace that is all the world."""

    def __init__(self, network: Network, outside: Namespace, make: Make) -> None:
        self.network, self.outside, self._make = network, outside, make

    async def guest(self, stack: ExitStack, limits: RateLimits) -> PumpedGuest:
        instance = InstanceId(str(self.network.statistics().held_count))
        endpoint = self.network.reserve(instance)
        tap = await self.network.attach(instance, limits)
        guest = PumpedGuest(endpoint, tap, self._make())
        tap.close()
        return stack.enter_context(guest)

    def carry(
        self, guest: PumpedGuest, way: Way, total_bytes: int, port: int = PORT
    ) -> list[tuple[float, int]]:
        """Carry bytes over a connection that the guest opens. Blocks."""
        with (
            guest.namespace.socket(socket.SOCK_STREAM) as inside,
            connect(inside, self.outside, OUTSIDE, port) as far,
        ):
            return transfer(*((far, inside) if way == "download" else (inside, far)), total_bytes)


@pytest.fixture
async def host(ip: Run, new_namespace: Make) -> AsyncIterator[Host]:
    outside = new_namespace()
    ip(f"link add up0 type veth peer name far0 netns {outside.path}")
    ip(f"addr add {HOST}/24 dev up0")
    ip("link set up0 up")
    outside.ip(f"addr add {OUTSIDE}/24 dev far0")
    outside.ip("link set far0 up")
    ip(f"route add default via {OUTSIDE}")
    network = Network(BridgeConfig())
    await network.open()
    yield Host(network, outside, new_namespace)
    await network.close()


def limits_of(way: Way, rate_bytes_per_s: int) -> RateLimits:
    return RateLimits(**{f"{way}_bytes_per_s": rate_bytes_per_s})


def rate_of(steps: list[tuple[float, int]]) -> float:
    """Return bytes per second, from the first bytes to the last."""
    (began, first), (ended, last) = steps[0], steps[-1]
    return (last - first) / (ended - began)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mbit_per_s", [20, 200])
async def test_a_limit_holds_from_the_first_second_on(host: Host, way: Way, mbit_per_s: int) -> None:
    rate = mbit_per_s * MBIT_BYTES
    with ExitStack() as stack:
        guest = await host.guest(stack, limits_of(way, rate))
        steps = await anyio.to_thread.run_sync(host.carry, guest, way, rate * SECONDS)
    assert rate * (1 - MARGIN) < rate_of(steps) < rate * (1 + MARGIN)
    assert max(received for at_s, received in steps if at_s <= 1) < rate * (1 + MARGIN)


@pytest.mark.parametrize("way", WAYS)
async def test_without_a_limit_that_way_is_faster(host: Host, way: Way) -> None:
    """The negative control of the above: it is the limit of that way that held, and nothing else."""
    other: Way = "upload" if way == "download" else "download"
    rate = 20 * MBIT_BYTES
    with ExitStack() as stack:
        guest = await host.guest(stack, limits_of(other, rate))
        steps = await anyio.to_thread.run_sync(host.carry, guest, way, rate * SECONDS)
    assert rate_of(steps) > rate * (1 + MARGIN) * 2


async def test_two_guests_do_not_share_their_limits(host: Host) -> None:
    rate = 20 * MBIT_BYTES
    rates: list[float] = []

    async def upload(guest: PumpedGuest, port: int) -> None:
        carried = partial(host.carry, guest, "upload", rate * SECONDS, port)
        rates.append(rate_of(await anyio.to_thread.run_sync(carried)))

    with ExitStack() as stack:
        guests = [await host.guest(stack, limits_of("upload", rate)) for _ in range(2)]
        async with anyio.create_task_group() as group:
            for number, guest in enumerate(guests):
                group.start_soon(upload, guest, PORT + number)
    assert all(rate * (1 - MARGIN) < found < rate * (1 + MARGIN) for found in rates)


async def test_upload_never_passes_unlimited_though_its_ifb_is_taken_away(host: Host, ip: Run) -> None:
    with ExitStack() as stack:
        guest = await host.guest(stack, limits_of("upload", 20 * MBIT_BYTES))
        with (
            guest.namespace.socket(socket.SOCK_DGRAM) as inside,
            host.outside.socket(socket.SOCK_DGRAM) as far,
        ):
            far.bind((OUTSIDE, PORT))
            far.settimeout(TIMEOUT_S)
            inside.sendto(b"limited", (OUTSIDE, PORT))
            assert far.recv(100) == b"limited"
            ip(f"link del {guest.endpoint.ifb_name}")
            inside.sendto(b"without its IFB", (OUTSIDE, PORT))
            while refused_by_detour(guest.endpoint.tap_name) == 0:
                await anyio.lowlevel.checkpoint()
            host.network._shaping.put_nowait(guest.endpoint, limits_of("upload", 20 * MBIT_BYTES))
            await host.network._shaping.work()
            inside.sendto(b"limited again", (OUTSIDE, PORT))
            assert far.recv(100) == b"limited again"


def refused_by_detour(interface: str) -> int:
    """Return how many frames that came in the detour had nowhere to send to."""
    command = ["tc", "-s", "-j", "filter", "show", "dev", interface, "ingress"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return sum(
        int(action["stats"]["overlimits"])
        for entry in json.loads(done.stdout)
        for action in entry.get("options", {}).get("actions", ())
    )
