"""Who is connected to whom: the open TCP connections of a network's addresses, as they come and go.

It listens to the kernel's events, and lists all of them anew when some were dropped, and every RESYNC_S
seconds. A connection that is only being opened counts: whoever waits for its answer is somebody.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from typing import Final

import anyio
import structlog
from anyio import to_thread

from ramet.linux.conntrack import OVER, Connection, ConnectionEvents, Seen, list_connections

RESYNC_S: Final = 300.0
RETRY_S: Final = 5.0
OURS_S: Final = 180.0
"""How long one of our own is known as such after its end, at most; the kernel remembers it for 120 s."""
DATAGRAMS_PER_TURN: Final = 16
"""How many are read at once; the loop's other tasks have their turn then."""

log = structlog.get_logger(__name__)

End = tuple[IPv4Address, int]
OnChange = Callable[[IPv4Address], None]


class Flows:
    """Open connections, by the address of `subnet` that answers (`inbound`) or asks (`outbound`).

    `error` says why they are not known, and is empty if they are. Those that are `ours` do not count.
    """

    def __init__(self, subnet: IPv4Network) -> None:
        self._subnet = subnet
        self._inbound: defaultdict[IPv4Address, set[Connection]] = defaultdict(set)
        self._outbound: defaultdict[IPv4Address, set[Connection]] = defaultdict(set)
        self._on_change: OnChange = lambda address: None
        self._is_behind = asyncio.Event()
        self._ours: dict[tuple[End, End], bool] = {}  # Whether it is over.
        self._ours_ended: dict[tuple[End, End], float] = {}
        self.error = "not looked at yet"

    def inbound(self, address: IPv4Address) -> frozenset[Connection]:
        """Return the connections that somebody has to `address`."""
        return frozenset(self._inbound.get(address, ()))

    def outbound(self, address: IPv4Address) -> frozenset[Connection]:
        """Return the connections that `address` has to somebody."""
        return frozenset(self._outbound.get(address, ()))

    @contextmanager
    def ours(self, client: End, server: End) -> Iterator[None]:
        """Have a connection that is opened and closed inside not count, nor what is told of it later."""
        ends, now = (client, server), time.monotonic()
        self._ours[ends] = False
        try:
            yield
        finally:
            self._ours_ended.pop(ends, None)  # So that the first is the one that ended first.
            if not self._ours.pop(ends):
                self._ours_ended[ends] = time.monotonic() + OURS_S
            while self._ours_ended and next(iter(self._ours_ended.values())) < now:
                del self._ours_ended[next(iter(self._ours_ended))]

    async def run(self, on_change: OnChange, on_known: Callable[[], None]) -> None:
        """Keep them known until cancelled.

        Args:
            on_change: called with an address whenever its connections are others than before.
            on_known: called when they are known, and were not.
        """
        self._on_change = on_change
        while True:
            try:
                await self._follow(on_known)
            except OSError as error:
                self.error = str(error) or type(error).__name__
                log.warning("connections_unknown", error=self.error)
                self._replace([])
                await anyio.sleep(RETRY_S)

    async def _follow(self, on_known: Callable[[], None]) -> None:
        events = ConnectionEvents()
        loop = asyncio.get_running_loop()
        failure: list[OSError] = []

        def read() -> None:
            try:
                self._read(events)
            except OSError as error:
                failure.append(error)
                loop.remove_reader(events.fileno())
                self._is_behind.set()

        try:
            while True:
                self._is_behind.clear()
                # What happens meanwhile waits in the socket: taken now, the older list would undo it.
                self._replace(await to_thread.run_sync(list_connections))
                if self.error:
                    self.error = ""
                    on_known()
                loop.add_reader(events.fileno(), read)
                with anyio.move_on_after(RESYNC_S):
                    await self._is_behind.wait()
                loop.remove_reader(events.fileno())
                if failure:
                    raise failure[0]
        finally:
            loop.remove_reader(events.fileno())
            events.close()

    def _read(self, events: ConnectionEvents) -> None:
        for _ in range(DATAGRAMS_PER_TURN):
            seen = events.read()
            if seen is None:
                self._is_behind.set()
                return
            if not seen:
                return
            self._take(seen)

    def _take(self, seen: Iterable[Seen]) -> None:
        changed: set[IPv4Address] = set()
        for connection, state in seen:
            if state in OVER:
                self._end_ours((connection.client, connection.server))
            for address, table in self._places(connection):
                connections = table[address]
                if (connection in connections) == (state in OVER):
                    connections ^= {connection}
                    changed.add(address)
                if not connections:
                    del table[address]
        for address in changed:
            self._on_change(address)

    def _end_ours(self, ends: tuple[End, End]) -> None:
        """Take note that a connection is over, which may be one of ours."""
        if ends in self._ours:
            self._ours[ends] = True
        else:
            self._ours_ended.pop(ends, None)

    def _replace(self, seen: Iterable[Seen]) -> None:
        """Have these be all there are."""
        before = (dict(self._inbound), dict(self._outbound))
        self._inbound.clear()
        self._outbound.clear()
        for connection, state in seen:
            if state not in OVER:
                for address, table in self._places(connection):
                    table[address].add(connection)
        for address in _differences(before[0], self._inbound) | _differences(before[1], self._outbound):
            self._on_change(address)

    def _places(
        self, connection: Connection
    ) -> list[tuple[IPv4Address, defaultdict[IPv4Address, set[Connection]]]]:
        ends = (connection.client, connection.server)
        if ends in self._ours or ends in self._ours_ended:
            return []
        places = []
        if connection.responder[0] in self._subnet:
            places.append((connection.responder[0], self._inbound))
        if connection.client[0] in self._subnet:
            places.append((connection.client[0], self._outbound))
        return places


def _differences(
    before: Mapping[IPv4Address, set[Connection]], after: Mapping[IPv4Address, set[Connection]]
) -> set[IPv4Address]:
    return {address for address in before.keys() | after.keys() if before.get(address) != after.get(address)}
