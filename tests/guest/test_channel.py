"""One connection to a guest, against a guest that does not always behave."""

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from ramet.core.errors import Broken
from ramet.guest import channel as channel_module
from ramet.guest.channel import STREAMS_COUNT_MAX, Channel, open_channel
from ramet.guest.errors import (
    GuestMisbehaved,
    GuestRefused,
    GuestUnreachable,
    GuestVersionUnsupported,
    StreamsExhausted,
)
from ramet.wire.frames import MAGIC, Frame, FrameType, encode
from ramet.wire.messages import HelloAck, Workload, WorkloadExited, dump
from tests.guest.fake_guest import RUNNING, FakeGuest, Session

pytestmark = pytest.mark.anyio
SOON_S = 0.05
STALE_ACK = encode(
    Frame(FrameType.HELLO_ACK, 0, dump(HelloAck("0" * 32, "0.1.0", Workload("frozen")).to_json()))
)
STALE_ANSWER = encode(Frame(FrameType.RESPONSE, 1, dump({"ok": {"frozen": True}})))


def ignore(session: Session, frame: Frame, request: dict[str, object]) -> None:
    """Never answer."""


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[FakeGuest]:
    async with FakeGuest(tmp_path / "agent.sock") as guest:
        yield guest


@pytest.fixture
async def channel(guest: FakeGuest) -> AsyncIterator[Channel]:
    async with await open_channel(guest.path, timeout_s=5) as channel:
        yield channel


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel_module, "HELLO_RETRY_S", 0.01)
    monkeypatch.setattr(channel_module, "HELLO_RETRY_S_MAX", 0.01)


async def test_an_open_channel_knows_the_workload(guest: FakeGuest) -> None:
    async with await open_channel(guest.path, streams="keep", timeout_s=5) as channel:
        assert channel.workload == RUNNING
    assert [hello.streams for hello in guest.hellos] == ["keep"]


async def test_simple_requests_are_answered(guest: FakeGuest, channel: Channel) -> None:
    health = await channel.health()
    assert (health.workload, health.uptime_s) == (RUNNING, 1.5)
    await channel.sync()
    await channel.freeze()
    await channel.thaw()
    await channel.shutdown(grace_s=2)
    assert [request["op"] for request in guest.requests] == ["health", "sync", "freeze", "thaw", "shutdown"]
    assert guest.requests[-1]["timeout_s"] == 2


async def test_answers_find_their_requests_in_any_order(guest: FakeGuest, channel: Channel) -> None:
    waiting: list[tuple[int, object]] = []

    def answer_backwards(session: Session, frame: Frame, request: dict[str, object]) -> None:
        waiting.append((frame.stream, request["number"]))
        if len(waiting) == 3:
            for stream, number in reversed(waiting):
                session.ok(stream, {"number": number})

    guest.answers["count"] = answer_backwards
    pending = [channel.send_request("count", {"number": number}) for number in range(3)]
    assert [await answer.wait(5) for answer in pending] == [{"number": number} for number in range(3)]


async def test_a_refusal_carries_the_code_of_the_guest(channel: Channel) -> None:
    with pytest.raises(GuestRefused) as refused:
        await channel.request("dance")
    assert (refused.value.code, refused.value.guest_code) == ("guest_refused", "unknown_op")


@pytest.mark.parametrize(
    "stale",
    [
        pytest.param(STALE_ANSWER, id="an answer to the parent"),
        pytest.param(STALE_ACK + STALE_ANSWER, id="the parent's hello and an answer"),
        pytest.param(STALE_ACK[:30], id="half of the parent's hello"),
        pytest.param(STALE_ACK + STALE_ANSWER[:11], id="half an answer"),
        pytest.param(STALE_ACK + MAGIC[:9], id="half a magic"),
        pytest.param(STALE_ACK + b"\xff" * 100, id="garbage"),
        pytest.param(MAGIC + STALE_ACK, id="a magic without a hello"),
        pytest.param(
            encode(Frame(FrameType.HELLO_ACK, 0, b"[]")) + STALE_ANSWER, id="a hello that makes no sense"
        ),
    ],
)
async def test_what_the_parent_left_in_the_pipe_is_dropped(guest: FakeGuest, stale: bytes) -> None:
    guest.before_ack = stale
    async with await open_channel(guest.path, timeout_s=5) as channel:
        assert channel.workload == RUNNING
        assert (await channel.health()).uptime_s == 1.5


@pytest.mark.usefixtures("impatient")
async def test_a_hello_that_got_lost_is_said_again_with_another_nonce(guest: FakeGuest) -> None:
    guest.hellos_missed = 2
    async with await open_channel(guest.path, timeout_s=5) as channel:
        await channel.health()
    assert len({hello.nonce for hello in guest.hellos}) == len(guest.hellos) >= 3


@pytest.mark.usefixtures("impatient")
async def test_a_hello_that_nobody_has_fetched_is_not_said_again(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)  # As a VMM that serves somebody else.
        with pytest.raises(GuestUnreachable) as unreachable:
            await open_channel(path, timeout_s=SOON_S * 3)
        assert unreachable.value.fields["unfetched_bytes"]
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.recv(65_536).count(MAGIC) == 1


@pytest.mark.usefixtures("impatient")
async def test_a_guest_that_never_answers_is_unreachable(guest: FakeGuest) -> None:
    guest.hellos_missed = 1000
    with pytest.raises(GuestUnreachable, match="did not answer"):
        await open_channel(guest.path, timeout_s=SOON_S)


async def test_a_full_backlog_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(str(path))
        listener.listen(0)
        other.connect(str(path))
        with pytest.raises(GuestUnreachable, match="did not answer"):
            await open_channel(path, timeout_s=SOON_S)


@pytest.mark.parametrize("kind", ["nobody", "not a socket"])
async def test_a_path_without_a_listener_fails_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "agent.sock"
    if kind == "not a socket":
        path.touch()
    with pytest.raises(GuestUnreachable, match="nobody listens"):
        await open_channel(path, timeout_s=3600)


async def test_a_path_longer_than_a_socket_address_is_reached(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 60) / ("e" * 60)
    folder.mkdir(parents=True)
    async with FakeGuest(tmp_path / "a") as guest:
        (folder / "agent.sock").symlink_to(guest.path)
        async with await open_channel(folder / "agent.sock", timeout_s=5) as channel:
            await channel.health()


async def test_a_guest_of_another_version_is_refused(guest: FakeGuest) -> None:
    guest.version = 2
    with pytest.raises(GuestVersionUnsupported) as unsupported:
        await open_channel(guest.path, timeout_s=5)
    assert unsupported.value.fields == {"version": 2}


async def test_a_lost_connection_fails_all_that_wait_at_once(guest: FakeGuest, channel: Channel) -> None:
    guest.answers["health"] = ignore
    pending = [channel.send_request("health", {}) for _ in range(3)]
    await guest.asked.wait()
    guest.session.hang_up()
    for answer in pending:
        with pytest.raises(GuestUnreachable):
            await answer.wait(3600)
    assert isinstance(await channel.wait_lost(), GuestUnreachable)
    with pytest.raises(GuestUnreachable):
        await channel.health()


async def test_a_connection_lost_inside_a_frame_fails_what_waits(guest: FakeGuest, channel: Channel) -> None:
    def half_an_answer(session: Session, frame: Frame, request: dict[str, object]) -> None:
        assert session.transport is not None
        session.transport.write(encode(Frame(FrameType.RESPONSE, frame.stream, dump({"ok": {}})))[:10])
        session.transport.close()

    guest.answers["sync"] = half_an_answer
    with pytest.raises(GuestUnreachable):
        await channel.sync(timeout_s=3600)


async def test_closing_fails_what_waits(guest: FakeGuest, channel: Channel) -> None:
    guest.answers["health"] = ignore
    pending = channel.send_request("health", {})
    await channel.aclose()
    with pytest.raises(GuestUnreachable, match="closed by us"):
        await pending.wait(3600)
    await channel.aclose()


async def test_a_late_answer_reaches_nobody(guest: FakeGuest, channel: Channel) -> None:
    late: list[int] = []

    def keep(session: Session, frame: Frame, request: dict[str, object]) -> None:
        late.append(frame.stream)

    guest.answers["sync"] = keep
    with pytest.raises(GuestUnreachable, match="sync within"):
        await channel.sync(timeout_s=SOON_S)
    with anyio.move_on_after(SOON_S) as scope:
        await channel.sync(timeout_s=3600)
    assert scope.cancelled_caught
    for stream in late:
        guest.session.ok(stream, {})
    assert (await channel.health()).uptime_s == 1.5


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"\1\1\1\1\1\1\1\1", id="not a frame"),
        pytest.param(encode(Frame(FrameType.RESPONSE, 1, b"{")), id="not JSON"),
        pytest.param(encode(Frame(FrameType.RESPONSE, 1, b"{}")), id="neither ok nor error"),
        pytest.param(encode(Frame(FrameType.STDOUT, 1, b"hello")), id="output of a request"),
        pytest.param(STALE_ACK, id="a hello nobody asked for"),
        pytest.param(MAGIC * 3, id="magic and no hello"),
        pytest.param(encode(Frame(FrameType.EVENT, 0, b'{"event":7}')), id="an event without a name"),
    ],
)
async def test_a_guest_that_breaks_the_protocol_is_cut_off(
    guest: FakeGuest, channel: Channel, answer: bytes
) -> None:
    guest.answers["health"] = lambda session, frame, request: session.write(answer)
    with pytest.raises(GuestMisbehaved) as misbehaved:
        await channel.health(timeout_s=3600)
    assert isinstance(misbehaved.value, Broken)
    assert await channel.wait_lost() is misbehaved.value


async def test_an_answer_with_wrong_members_cuts_the_guest_off(guest: FakeGuest, channel: Channel) -> None:
    guest.answers["freeze"] = lambda session, frame, request: session.ok(frame.stream, {"frozen": 1})
    with pytest.raises(GuestMisbehaved):
        await channel.freeze()


async def test_frames_for_nobody_are_ignored(guest: FakeGuest, channel: Channel) -> None:
    guest.session.send(FrameType.STDOUT, 4711, b"late")
    guest.session.ok(4712, {})
    guest.session.send(FrameType.EVENT, 0, b'{"event":"from_the_future"}')
    await channel.health()


async def test_events_are_delivered(guest: FakeGuest) -> None:
    happened: asyncio.Queue[WorkloadExited] = asyncio.Queue()
    exited = WorkloadExited(7, None, "it was time")
    async with await open_channel(guest.path, timeout_s=5, on_event=happened.put_nowait):
        guest.session.send(FrameType.EVENT, 0, dump(exited.to_json()))
        assert await happened.get() == exited


async def test_a_guest_that_powers_off_before_answering_has_been_shut_down(
    guest: FakeGuest, channel: Channel
) -> None:
    guest.answers["shutdown"] = lambda session, frame, request: session.hang_up()
    await channel.shutdown()
    with pytest.raises(GuestUnreachable):
        await channel.shutdown()


async def test_open_requests_are_limited_and_streams_come_back(guest: FakeGuest, channel: Channel) -> None:
    streams: list[int] = []

    def keep(session: Session, frame: Frame, request: dict[str, object]) -> None:
        streams.append(frame.stream)
        if len(streams) == STREAMS_COUNT_MAX:
            for stream in streams:
                session.ok(stream, {})

    guest.answers["sync"] = keep
    pending = [channel.send_request("sync", {}) for _ in range(STREAMS_COUNT_MAX)]
    with pytest.raises(StreamsExhausted):
        channel.send_request("sync", {})
    for answer in pending:
        await answer.wait(30)
    assert len(set(streams)) == STREAMS_COUNT_MAX
    await channel.health()


async def test_cancelling_the_opening_leaves_no_connection(guest: FakeGuest) -> None:
    guest.hellos_missed = 1000
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: open_channel(guest.path, timeout_s=3600))
        await guest.connected.wait()
        group.cancel_scope.cancel()
    with anyio.fail_after(5):
        await guest.session.lost.wait()
