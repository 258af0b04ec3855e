"""What of a session's output is kept, and for whom its command waits."""

from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import pytest

from ramet.core.errors import Broken, Invalid
from ramet.core.ids import InstanceId
from ramet.instance import held_exec
from ramet.instance.fleet_types import ExecCommand, ExecEnd, WindowSize
from ramet.instance.held_exec import OUTPUT_BYTES_MAX, HeldExec, HeldExecs, TooManyExecs

pytestmark = pytest.mark.anyio

WEB = InstanceId("web")
COMMAND = ExecCommand(("writer",))
PIECE = bytes(range(256)) * 64
TIMEOUT_S = 30.0


class Writer:
    """A command that writes so many pieces, and then ends."""

    def __init__(self, count: int, piece: bytes = PIECE) -> None:
        self.count, self.piece = count, piece
        self.written = 0
        self.is_closed = False

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        for number in range(self.count):
            self.written += 1
            yield 1 + number % 2, self.piece

    async def wait(self) -> ExecEnd:
        return ExecEnd(0, None, timed_out=False)

    async def aclose(self) -> None:
        self.is_closed = True

    async def write(self, data: bytes) -> None: ...
    async def close_stdin(self) -> None: ...
    async def send_signal(self, number: int) -> None: ...
    async def resize(self, size: WindowSize) -> None: ...


async def start(held: HeldExecs, writer: Writer, keep_s: float = 600.0) -> HeldExec:
    async def open_session() -> Writer:
        return writer

    return await held.start(WEB, COMMAND, open_session, keep_s)


async def over(session: HeldExec) -> None:
    with anyio.fail_after(TIMEOUT_S):
        while not session.is_over:
            await session.changed()


async def test_without_anybody_the_oldest_is_dropped_and_said_to_be_missed() -> None:
    held, writer = HeldExecs(), Writer(200)
    async with held.running():
        session = await start(held, writer)
        await over(session)
        assert session.position == 200 * len(PIECE)
        view = session.view(0)
        assert OUTPUT_BYTES_MAX // 2 < session.position - view.position <= OUTPUT_BYTES_MAX
        assert view.missed_bytes == view.position
        whole = PIECE * 200
        assert b"".join([data async for _, data in view.output()]) == whole[view.position :]


async def test_one_whose_client_reads_slowly_waits() -> None:
    held, writer = HeldExecs(), Writer(1000)
    async with held.running():
        view = (await start(held, writer)).view(0)
        await anyio.wait_all_tasks_blocked()
        assert writer.written * len(PIECE) < OUTPUT_BYTES_MAX
        with anyio.fail_after(TIMEOUT_S):
            assert b"".join([data async for _, data in view.output()]) == PIECE * 1000


async def test_one_whose_client_left_in_the_middle_goes_on() -> None:
    held, writer = HeldExecs(), Writer(1000)
    async with held.running():
        session = await start(held, writer)
        view = session.view(0)
        await anyio.wait_all_tasks_blocked()
        assert not session.is_over
        await view.aclose()
        await over(session)


async def test_many_small_pieces_are_kept_and_found() -> None:
    held, writer = HeldExecs(), Writer(6_000, b"x")
    async with held.running():
        session = await start(held, writer)
        await over(session)
        view = session.view(1_000)
        assert view.missed_bytes == 0
        assert len(b"".join([data async for _, data in view.output()])) == 5_000


async def tell(session: HeldExec) -> None:
    view = session.view(0)
    assert b"".join([data async for _, data in view.output()]) == PIECE * 2
    assert (await view.wait()).exit_code == 0
    await view.aclose()


async def test_one_that_has_ended_is_kept_and_its_command_is_closed() -> None:
    held, writer = HeldExecs(), Writer(2)
    async with held.running():
        session = await start(held, writer)
        await tell(session)
        assert (held.list(WEB), writer.is_closed) == ([session], True)
        await tell(session)


async def test_one_to_which_nobody_comes_back_is_ended() -> None:
    held, writer = HeldExecs(), Writer(1000)
    async with held.running():
        view = (await start(held, writer, keep_s=0.0)).view(0)
        await anyio.wait_all_tasks_blocked()
        assert held.list(WEB)
        await view.aclose()
        with anyio.fail_after(TIMEOUT_S):
            while held.list(WEB):
                await anyio.lowlevel.checkpoint()
    assert writer.is_closed


async def test_when_the_daemon_leaves_all_are_ended() -> None:
    held, writer = HeldExecs(), Writer(1000)
    async with held.running():
        (await start(held, writer)).view(0)
        await anyio.wait_all_tasks_blocked()
    assert writer.is_closed


async def test_there_are_so_many_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_exec, "SESSION_COUNT_MAX", 1)
    held = HeldExecs()
    async with held.running():
        first = await start(held, Writer(2))
        with pytest.raises(TooManyExecs):
            await start(held, Writer(1))
        await tell(first)
        second = await start(held, Writer(1))
        assert held.list(WEB) == [second]


async def test_of_a_burst_no_more_are_started_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_exec, "SESSION_COUNT_MAX", 2)
    held, answer = HeldExecs(), anyio.Event()
    outcomes: list[HeldExec | TooManyExecs] = []

    async def open_session() -> Writer:
        await answer.wait()
        return Writer(0)

    async def ask() -> None:
        try:
            outcomes.append(await held.start(WEB, COMMAND, open_session, 600.0))
        except TooManyExecs as error:
            outcomes.append(error)

    async def fail() -> Writer:
        raise Broken("the guest does not answer")

    async with held.running():
        with pytest.raises(Broken):
            await held.start(WEB, COMMAND, fail, 600.0)  # It gives its place back.
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            answer.set()
        assert len(held.list(WEB)) == 2
        assert [type(one) for one in outcomes].count(TooManyExecs) == 3


async def test_who_reads_slowly_misses_nothing_of_many_small_pieces() -> None:
    held, writer = HeldExecs(), Writer(30_000, b"x")
    async with held.running():
        view = (await start(held, writer)).view(0)
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(TIMEOUT_S):
            assert len(b"".join([data async for _, data in view.output()])) == 30_000


async def test_who_comes_back_to_an_earlier_place_misses_nothing_after_it() -> None:
    held, writer = HeldExecs(), Writer(300)
    async with held.running():
        session = await start(held, writer)
        first = session.view(0)
        told = 0
        async for _, data in first.output():
            told += len(data)
            if told == 150 * len(PIECE):
                break
        await anyio.wait_all_tasks_blocked()
        await first.aclose()
        second = session.view(session.first_position())
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(TIMEOUT_S):
            rest = b"".join([data async for _, data in second.output()])
        assert second.position + len(rest) == 300 * len(PIECE)


async def test_nothing_is_written_to_a_stdin_that_another_client_has_ended() -> None:
    held, writer = HeldExecs(), Writer(0)
    async with held.running():
        session = await start(held, writer)
        session.has_stdin = True
        first, second = session.view(0), session.view(0)
        await first.close_stdin()
        with pytest.raises(Invalid):
            await second.write(b"more")


async def test_one_whose_guest_is_gone_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    class Abandoned(Writer):
        async def wait(self) -> ExecEnd:
            raise Broken("the guest went away")

    monkeypatch.setattr(held_exec, "SESSION_COUNT_MAX", 1)
    held = HeldExecs()
    async with held.running():
        await over(await start(held, Abandoned(1)))
        second = await start(held, Writer(1))
        assert held.list(WEB) == [second]
