"""Processes in a guest: their output, their input, and that nothing grows without bound."""

from collections.abc import AsyncIterator
from pathlib import Path
from signal import SIGKILL, SIGTERM, SIGUSR1

import anyio
import pytest

from ramet.core.errors import Invalid
from ramet.guest import exec as exec_module
from ramet.guest import process as process_module
from ramet.guest.channel import Channel, open_channel
from ramet.guest.errors import (
    ExecInvalid,
    ExecOutputTooLong,
    GuestMisbehaved,
    GuestRefused,
    GuestUnreachable,
    NoSuchDirectory,
    NoSuchUser,
)
from ramet.guest.exec import Completed, Output, open_exec, run
from ramet.wire.frames import CREDIT_BYTES, MAGIC, Frame, FrameType
from ramet.wire.messages import ExitStatus, dump
from tests.guest.fake_guest import FakeGuest, Session

pytestmark = pytest.mark.anyio


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[FakeGuest]:
    async with FakeGuest(tmp_path / "agent.sock") as guest:
        yield guest


@pytest.fixture
async def channel(guest: FakeGuest) -> AsyncIterator[Channel]:
    async with await open_channel(guest.path, timeout_s=5) as channel:
        yield channel


async def test_a_process_is_run_to_its_end(guest: FakeGuest, channel: Channel) -> None:
    completed = await run(channel, ["say", "hello", "2"], env={"A": "b"}, cwd="/tmp", user="1:1", timeout_s=9)
    assert completed == Completed(b"hellohello", b"5\n5\n", ExitStatus(3))
    request = guest.requests[-1]
    assert request == {
        "op": "exec",
        "argv": ["say", "hello", "2"],
        "env": {"A": "b"},
        "cwd": "/tmp",
        "user": "1:1",
        "timeout_s": 9,
        "stdin": False,
    }


@pytest.mark.parametrize(
    "data",
    [b"x", MAGIC * 3 + b"tail", bytes(CREDIT_BYTES * 5 + 7), MAGIC * 50_000],
    ids=["a byte", "magic", "beyond credit", "much magic"],
)
async def test_stdin_comes_back_from_cat(channel: Channel, data: bytes) -> None:
    completed = await run(channel, ["cat"], stdin=data)
    assert completed == Completed(data, b"", ExitStatus(0))


async def test_many_processes_at_once_do_not_mix(channel: Channel) -> None:
    async def one(number: int) -> None:
        data = bytes([number]) * 300_000
        assert (await run(channel, ["cat"], stdin=data)).stdout == data

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(one, number)


@pytest.mark.parametrize(
    ("code", "exit_code", "text"),
    [
        ("command_not_found", 127, b"ramet: nosuch: command not found\n"),
        ("not_executable", 126, b"ramet: nosuch: cannot be executed\n"),
    ],
)
async def test_a_command_that_cannot_be_run_ends_as_in_a_shell(
    guest: FakeGuest, channel: Channel, code: str, exit_code: int, text: bytes
) -> None:
    guest.answers["exec"] = lambda session, frame, request: session.refuse(frame.stream, code, "no")
    assert await run(channel, ["nosuch"], stdin=b"unread") == Completed(b"", text, ExitStatus(exit_code))


@pytest.mark.parametrize(
    ("code", "error"),
    [("no_such_user", NoSuchUser), ("no_such_directory", NoSuchDirectory), ("internal", GuestRefused)],
)
async def test_other_refusals_have_a_type(
    guest: FakeGuest, channel: Channel, code: str, error: type[Exception]
) -> None:
    guest.answers["exec"] = lambda session, frame, request: session.refuse(frame.stream, code, "no")
    with pytest.raises(error):
        await open_exec(channel, ["true"], user="nobody", cwd="/nowhere")
    await channel.health()


@pytest.mark.parametrize(
    ("argv", "env"),
    [
        ([], {}),
        ([""], {}),
        (["a\0b"], {}),
        (["a", "\ud800"], {}),
        (["a"], {"B=": "c"}),
        (["a"], {"": "c"}),
        (["a"], {"B": "\0"}),
        (["a", "x" * 70_000], {}),
    ],
)
async def test_what_no_process_can_be_given_is_refused_here(
    guest: FakeGuest, channel: Channel, argv: list[str], env: dict[str, str]
) -> None:
    with pytest.raises(ExecInvalid) as invalid:
        await open_exec(channel, argv, env=env)
    assert isinstance(invalid.value, Invalid)
    await channel.health()
    assert [request["op"] for request in guest.requests] == ["health"]


async def test_an_unread_process_is_stopped_by_its_credit(guest: FakeGuest, channel: Channel) -> None:
    async with await open_exec(channel, ["say", "x" * 1000, "2000"]) as process:
        await channel.health()  # All the guest may send has arrived before this answer.
        (written,) = guest.session.processes.values()
        assert written.credit == 0
        total = 0
        async for _, chunk in process.output():
            assert len(chunk) <= CREDIT_BYTES
            total += len(chunk)
        assert total == 2000 * (1000 + len("1000\n"))
        assert await process.wait() == ExitStatus(3)


async def test_waiting_without_reading_drops_the_output(channel: Channel) -> None:
    async with await open_exec(channel, ["say", "x" * 1000, "2000"]) as process:
        assert await process.wait() == ExitStatus(3)


async def test_a_reader_who_stops_does_not_block_the_wait(channel: Channel) -> None:
    async with await open_exec(channel, ["say", "x" * 1000, "2000"]) as process:
        output = process.output()
        assert (await anext(output))[0] is Output.STDOUT
        await output.aclose()
        assert await process.wait() == ExitStatus(3)


async def test_output_and_wait_may_run_at_the_same_time(channel: Channel) -> None:
    seen: list[tuple[Output, bytes]] = []
    async with await open_exec(channel, ["cat"], stdin=True) as process, anyio.create_task_group() as group:

        async def read() -> None:
            async for item in process.output():
                seen.append(item)

        group.start_soon(read)
        group.start_soon(process.wait)
        await process.write(b"a" * CREDIT_BYTES * 3)
        process.write_eof()
        process.write_eof()
    assert sum(len(chunk) for _, chunk in seen) == CREDIT_BYTES * 3
    assert process.exit == ExitStatus(0)


async def test_writing_waits_for_the_guest_to_read(guest: FakeGuest, channel: Channel) -> None:
    async with await open_exec(channel, ["miser"], stdin=True) as process, anyio.create_task_group() as group:
        done: list[str] = []

        async def write() -> None:
            await process.write(bytes(CREDIT_BYTES * 2))
            done.append("written")

        group.start_soon(write)
        await channel.health()
        await channel.health()
        assert not done
        assert guest.unread_bytes_max == CREDIT_BYTES
        process.signal(SIGUSR1)  # Read now.
        await channel.health()
        await channel.health()
        assert done == ["written"]
        process.signal(SIGTERM)
        assert await process.wait() == ExitStatus(None, SIGTERM)
        await process.write(b"to nobody")


async def test_output_beyond_the_limit_kills_the_process(guest: FakeGuest, channel: Channel) -> None:
    with pytest.raises(ExecOutputTooLong):
        await run(channel, ["say", "x" * 1000, "2000"], output_bytes_max=5000)
    await guest.signalled.wait()
    assert [number for _, number in guest.signals] == [SIGKILL]
    await channel.health()
    assert not guest.session.processes


async def test_leaving_kills_the_process_and_frees_its_stream(guest: FakeGuest, channel: Channel) -> None:
    async with await open_exec(channel, ["sleep"]) as process:
        assert process.pid is not None
    await guest.signalled.wait()
    await channel.health()
    assert channel.open_stream_count == 0
    assert process.exit == ExitStatus(None, SIGKILL)


async def test_cancelling_kills_the_process(guest: FakeGuest, channel: Channel) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(run, channel, ["sleep"])
        await guest.asked.wait()
        group.cancel_scope.cancel()
    await guest.signalled.wait()
    assert [number for _, number in guest.signals] == [SIGKILL]


async def test_cancelling_before_the_process_runs_kills_it_when_it_does(
    guest: FakeGuest, channel: Channel
) -> None:
    held: list[tuple[Session, Frame]] = []
    guest.answers["exec"] = lambda session, frame, request: held.append((session, frame))
    async with anyio.create_task_group() as group:
        group.start_soon(run, channel, ["sleep"])
        await guest.asked.wait()
        group.cancel_scope.cancel()
    await channel.health()  # A SIGNAL for a process that did not run yet has been ignored.
    ((session, frame),) = held
    session.answer(frame, {"op": "exec", "argv": ["say", "x" * 1000, "2000"]})
    await guest.signalled.wait()
    await channel.health()
    assert channel.open_stream_count == 0


async def test_a_lost_connection_ends_every_exec(guest: FakeGuest, channel: Channel) -> None:
    async with await open_exec(channel, ["miser"], stdin=True) as process:
        guest.session.hang_up()
        with pytest.raises(GuestUnreachable):
            await process.wait()
        with pytest.raises(GuestUnreachable):
            await process.write(b"x")
        with pytest.raises(GuestUnreachable):
            async for _ in process.output():
                pass
        process.signal(SIGTERM)


async def test_what_arrived_before_the_connection_was_lost_is_still_read(
    guest: FakeGuest, channel: Channel
) -> None:
    async with await open_exec(channel, ["cat"], stdin=True) as process:
        await process.write(b"last words")
        await channel.health()
        guest.session.hang_up()
        output = process.output()
        assert await anext(output) == (Output.STDOUT, b"last words")
        with pytest.raises(GuestUnreachable):
            await anext(output)


async def test_a_guest_that_writes_beyond_its_credit_is_cut_off(channel: Channel) -> None:
    async with await open_exec(channel, ["cheat"]) as process:
        assert isinstance(await channel.wait_lost(), GuestMisbehaved)
        with pytest.raises(GuestMisbehaved, match="beyond its credit"):
            await process.wait()


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (FrameType.EXIT, {"code": None, "signal": None}),
        (FrameType.EXIT, {"code": "0"}),
        (FrameType.RESPONSE, {"ok": {"pid": 1}}),
        (FrameType.RESPONSE, {"ok": {"pid": None}}),
        (FrameType.CREDIT, {}),
    ],
)
async def test_a_guest_that_breaks_the_protocol_on_an_exec_is_cut_off(
    guest: FakeGuest, channel: Channel, kind: FrameType, payload: dict[str, object]
) -> None:
    async with await open_exec(channel, ["sleep"]) as process:
        ((stream, _),) = guest.session.processes.items()
        guest.session.send(kind, stream, dump(payload))
        with pytest.raises(GuestMisbehaved):
            await process.wait()


async def test_a_guest_that_does_not_start_or_end_it_in_time_is_unreachable(
    guest: FakeGuest, channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exec_module, "EXEC_GRACE_S", 0.05)
    with pytest.raises(GuestUnreachable, match="did not end"):
        await run(channel, ["sleep"], timeout_s=0.01)
    guest.answers["exec"] = lambda session, frame, request: None
    monkeypatch.setattr(process_module, "REQUEST_TIMEOUT_S", 0.05)
    with pytest.raises(GuestUnreachable, match="did not start"):
        await run(channel, ["sleep"])


async def test_many_tiny_frames_are_held_as_few_pieces(channel: Channel) -> None:
    async with await open_exec(channel, ["cat"], stdin=True) as process:
        for _ in range(3000):
            process.queue(b"x")
        process.write_eof()
        await channel.health()
        chunks = [chunk async for _, chunk in process.output()]
    assert b"".join(chunks) == b"x" * 3000
    assert len(chunks) == 1
