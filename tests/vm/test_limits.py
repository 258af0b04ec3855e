"""A guest's limits, and those of its forks in their first second, by real traffic through the uplink.

The guest opens connections without end, so a child's first is made as soon as its workload runs on: those
that it inherits from its parent are dead. The far side counts.
"""

import asyncio
import fcntl
import socket
import struct
import termios
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import anyio
import pytest

from ramet.core.spec import State
from tests.net.namespaces import Namespace
from tests.vm.site import FAR_ADDRESS, Children, Site

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

RATE_BYTES_PER_S = 2_500_000  # 20 Mbit/s
MARGIN = 0.10
SECONDS = 3  # What the bytes of a measurement take at the limit.
PORT = 5001
CHUNK_BYTES = 1 << 14
TIMEOUT_S = 60.0

Way = Literal["download", "upload"]
Steps = list[tuple[float, int]]
ENDS = {"download": ">/dev/null", "upload": "</dev/zero"}


@dataclass
class FarEnd:
    """A server behind the uplink that sends or receives without end.

    `connections` has for each (monotonic seconds, bytes that have arrived until then), growing.
    """

    way: Way
    connections: list[Steps] = field(default_factory=list)
    _arrival: anyio.Event = field(default_factory=anyio.Event)

    async def serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        async with anyio.create_task_group() as group:
            while True:
                connection, _ = await loop.sock_accept(listener)
                connection.setblocking(False)
                self.connections.append([])
                group.start_soon(self._count, connection, self.connections[-1])

    async def _count(self, connection: socket.socket, steps: Steps) -> None:
        loop, total = asyncio.get_running_loop(), 0
        with connection:
            try:
                while True:
                    if self.way == "download":
                        await loop.sock_sendall(connection, bytes(CHUNK_BYTES))
                        total += CHUNK_BYTES
                    else:
                        data = await loop.sock_recv(connection, CHUNK_BYTES)
                        if not data:
                            return
                        total += len(data)
                    steps.append((time.monotonic(), total - unacknowledged(connection)))
                    self._arrival.set()
            except ConnectionError:
                return  # The guest has gone.

    async def wait_bytes(self, first: int, byte_count: int) -> Steps:
        """Wait until that much has arrived over the connections from the `first` on; return all of it."""
        with anyio.fail_after(TIMEOUT_S):
            while True:
                self._arrival = anyio.Event()
                steps = merged(self.connections[first:])
                if steps and steps[-1][1] >= byte_count:
                    return steps
                await self._arrival.wait()


def unacknowledged(connection: socket.socket) -> int:
    """Return how many of the bytes sent have not arrived yet."""
    (count,) = struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))
    return int(count)


def merged(connections: list[Steps]) -> Steps:
    """Return what arrived over all `connections` together, the same way as over one."""
    last = [0] * len(connections)
    steps = []
    for at_s, index, arrived in sorted((at_s, i, n) for i, c in enumerate(connections) for at_s, n in c):
        last[index] = arrived
        steps.append((at_s, sum(last)))
    return steps


@asynccontextmanager
async def far_end(way: Way, far_side: Namespace) -> AsyncIterator[FarEnd]:
    with far_side.socket(socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")  # As the guest does.
        listener.bind((FAR_ADDRESS, PORT))
        listener.listen()
        listener.setblocking(False)
        end = FarEnd(way)
        async with anyio.create_task_group() as group:
            group.start_soon(end.serve, listener)
            yield end
            group.cancel_scope.cancel()


@pytest.fixture
async def limited(site: Site) -> AsyncIterator[str]:
    """Return the name of a guest that is limited both ways, and goes with the test."""
    spec = replace(site.spec(), download_bytes_per_s=RATE_BYTES_PER_S, upload_bytes_per_s=RATE_BYTES_PER_S)
    view = await site.fleet.create("limited", spec)
    assert view.record.state is State.RUNNING, view.record.state_error
    yield "limited"
    await site.fleet.delete("limited")


async def test_a_guest_and_its_fork_are_limited_both_ways_from_the_first_second_on(
    site: Site, limited: str, children: Children
) -> None:
    ways: tuple[Way, ...] = ("download", "upload")
    for way in ways:
        async with far_end(way, site.far_side) as far:
            loop = f"while :; do nc {FAR_ADDRESS} {PORT} {ENDS[way]}; done"
            await site.sh(
                limited, f"setsid sh -c '{loop}' </dev/null >/dev/null 2>&1 & echo $! >/dev/shm/loop"
            )
            check(f"{way} of a guest", await far.wait_bytes(0, RATE_BYTES_PER_S * SECONDS))
            before = len(far.connections)
            await children.fork(limited, f"{way}-child")
            check(f"{way} of its fork", await far.wait_bytes(before, RATE_BYTES_PER_S * SECONDS))
            await site.fleet.delete(f"{way}-child")
            await site.sh(limited, "kill -9 -$(cat /dev/shm/loop)")


def check(what: str, steps: Steps) -> None:
    """The rate holds on the whole, and is not exceeded in the first second."""
    began, ended = steps[0][0], steps[-1][0]
    rate = (steps[-1][1] - steps[0][1]) / (ended - began)
    in_first_second = max(arrived for at_s, arrived in steps if at_s - began <= 1)
    print(f"{what}, Mbit/s: {rate * 8e-6:.2f}, in its first second {in_first_second * 8e-6:.2f}")
    assert RATE_BYTES_PER_S * (1 - MARGIN) < rate < RATE_BYTES_PER_S * (1 + MARGIN)
    assert in_first_second < RATE_BYTES_PER_S * (1 + MARGIN)
