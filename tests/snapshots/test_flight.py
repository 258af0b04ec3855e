"""Who boards before the doors close shares a capture; a capture is given up when nobody needs it any more."""

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import anyio
import pytest

from ramet.core.errors import Broken
from ramet.core.ids import InstanceId, LayerId
from ramet.disks.layers import LayerStore
from ramet.linux.memfd import SealableFile
from ramet.snapshots.capture import Taken
from ramet.snapshots.flight import Flight, Flights
from ramet.vmm.port import Capture

pytestmark = pytest.mark.anyio

SOURCE = InstanceId("source")
SIZE_BYTES = 4 << 20


class Airport:
    """Takes captures when it is told to: each waits for `close` (the doors), then for `land`."""

    def __init__(self, folder: Path) -> None:
        self.layers = LayerStore(folder)
        self.taken: list[Taken] = []
        self.count = 0
        self.error: Exception | None = None
        self.doors = anyio.Event()
        self.landing = anyio.Event()

    async def take(self, source: InstanceId, close_doors: Callable[[], None]) -> Taken:
        self.count += 1
        await self.doors.wait()
        close_doors()
        await self.landing.wait()
        if self.error is not None:
            raise self.error
        capture = Capture(SealableFile("m", 4096), SealableFile("d"))
        taken = Taken(capture, self.layers.create(SIZE_BYTES), LayerId("none"), 0.0, 0.0, 0, 0, self.layers)
        self.taken.append(taken)
        return taken


@asynccontextmanager
async def flights_of(airport: Airport) -> AsyncIterator[Flights[Taken]]:
    async with anyio.create_task_group() as group:
        yield Flights(airport.take, group)
        group.cancel_scope.cancel()


@pytest.fixture
def airport(tmp_path: Path) -> Airport:
    return Airport(tmp_path)


async def test_all_who_board_before_the_doors_close_get_one_capture(airport: Airport) -> None:
    async with flights_of(airport) as flights:
        with_flight = [flights.board(SOURCE) for _ in range(3)]
        airport.doors.set()
        airport.landing.set()
        captures = [await flight.wait_landed() for flight in with_flight]
        assert len(set(map(id, captures))) == airport.count == 1


async def test_who_boards_after_the_doors_closed_gets_the_next_and_it_waits_for_the_first(
    airport: Airport,
) -> None:
    async with flights_of(airport) as flights:
        first = flights.board(SOURCE)
        airport.doors.set()
        await anyio.wait_all_tasks_blocked()
        second = flights.board(SOURCE)
        await anyio.wait_all_tasks_blocked()
        assert airport.count == 1
        airport.landing.set()
        assert await first.wait_landed() is not await second.wait_landed()
        assert airport.count == 2


async def test_another_sources_flight_does_not_wait(airport: Airport) -> None:
    async with flights_of(airport) as flights:
        flights.board(SOURCE)
        flights.board(InstanceId("other"))
        await anyio.wait_all_tasks_blocked()
        assert airport.count == 2


async def test_memory_and_layer_are_given_up_when_the_last_passenger_leaves(airport: Airport) -> None:
    async with flights_of(airport) as flights, AsyncExitStack() as late:
        await late.enter_async_context(flights.board(SOURCE))
        async with flights.board(SOURCE) as flight:
            airport.doors.set()
            airport.landing.set()
            taken = await flight.wait_landed()
        assert taken.capture.memory.fd >= 0
        assert airport.layers.path(taken.frozen).exists()
        await late.aclose()
        assert taken.capture.memory.fd < 0
        assert not airport.layers.path(taken.frozen).exists()


async def test_a_capture_that_nobody_waits_for_any_more_is_given_up_when_it_lands(airport: Airport) -> None:
    async with flights_of(airport) as flights:
        async with flights.board(SOURCE):
            pass
        airport.doors.set()
        airport.landing.set()
        await anyio.wait_all_tasks_blocked()
        assert airport.taken[0].capture.memory.fd < 0
        assert airport.layers.statistics() == {"held": 0, "files": 0, "undeleted": 0}


@pytest.mark.parametrize("error", [Broken("no"), ZeroDivisionError("a mistake")])
async def test_a_capture_that_fails_is_every_passengers_error_and_nobody_elses(
    airport: Airport, error: Exception
) -> None:
    airport.error = error
    async with flights_of(airport) as flights:
        passengers: list[Flight[Taken]] = [flights.board(SOURCE) for _ in range(2)]
        airport.doors.set()
        airport.landing.set()
        for flight in passengers:
            with pytest.raises(Broken, match=str(error)):
                await flight.wait_landed()
        airport.error = None
        assert await flights.board(SOURCE).wait_landed() is airport.taken[0]
