"""A child that becomes itself in one round trip."""

import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from ramet.guest import channel as channel_module
from ramet.guest.channel import open_channel
from ramet.guest.errors import GuestMisbehaved, GuestRefused, GuestUnreachable, IdentityNotTaken
from ramet.guest.identity import ENTROPY_BYTES, GuestIdentity, identify, identify_child
from ramet.wire.frames import Direction, Frame, FrameParser, FrameType, Reset
from ramet.wire.messages import Identity, Network
from tests.guest.fake_guest import FakeGuest, Session

pytestmark = pytest.mark.anyio
NETWORK = Network(
    "02:FC:0a:00:00:07", IPv4Address("10.0.0.7"), 24, IPv4Address("10.0.0.1"), (IPv4Address("10.0.0.1"),)
)
CHILD = GuestIdentity("child", "ab" * 16, NETWORK)


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[FakeGuest]:
    async with FakeGuest(tmp_path / "agent.sock") as guest:
        yield guest


async def test_a_child_becomes_itself(guest: FakeGuest) -> None:
    channel, answer = await identify_child(guest.path, CHILD, timeout_s=5)
    async with channel:
        assert (answer.hostname, answer.ip, answer.ran_before_identity) == ("child", NETWORK.ip, False)
        await channel.health()
    assert [request["op"] for request in guest.requests] == ["identify", "health"]
    assert guest.identity is not None
    assert guest.identity.network == NETWORK
    assert [hello.streams for hello in guest.hellos] == ["kill"]


async def test_hello_and_identity_are_one_message(tmp_path: Path) -> None:
    """Everything a sleeping child needs is in its socket before it says a word."""
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        with pytest.raises(GuestUnreachable):
            await identify_child(path, CHILD, timeout_s=0.05)
        asleep, _ = listener.accept()
        with asleep:
            events = FrameParser(Direction.HOST_TO_GUEST).feed(asleep.recv(65_536))
    kinds = [event.type if isinstance(event, Frame) else event for event in events]
    assert kinds == [Reset(), FrameType.HELLO, FrameType.REQUEST]


async def test_each_saying_has_its_own_time_and_entropy(
    guest: FakeGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel_module, "FIRST_REQUEST_RETRY_S", 0.01)
    said: list[Identity] = []

    def note(session: Session, frame: Frame, request: dict[str, Any]) -> None:
        said.append(Identity.from_json(request))
        session.answer(frame, request)

    guest.answers["identify"] = note
    guest.hellos_missed = 1
    channel, _ = await identify_child(guest.path, CHILD, timeout_s=5)
    async with channel:
        assert channel.hello_count == len(guest.hellos) > 1
        await identify(channel, CHILD)
    first, second = said[-2:]
    assert len(first.entropy) == ENTROPY_BYTES
    assert first.entropy != second.entropy
    assert first.clock_ns < second.clock_ns
    assert replace(first, entropy=b"", clock_ns=0) == replace(second, entropy=b"", clock_ns=0)


async def test_a_guest_without_network_has_neither_mac_nor_ip(guest: FakeGuest) -> None:
    channel, answer = await identify_child(guest.path, replace(CHILD, network=None), timeout_s=5)
    async with channel:
        assert (answer.mac, answer.ip) == (None, None)


@pytest.mark.parametrize(
    "wrong",
    [{"hostname": "parent"}, {"ip": "10.0.0.6"}, {"ip": None}, {"mac": "02:fc:0a:00:00:06"}],
)
async def test_a_child_that_is_still_its_parent_is_not_let_in(
    guest: FakeGuest, wrong: dict[str, object]
) -> None:
    right = {"mac": NETWORK.mac, "ip": str(NETWORK.ip), "hostname": "child", "ran_before_identity": False}
    guest.answers["identify"] = lambda session, frame, request: session.ok(frame.stream, {**right, **wrong})
    with pytest.raises(IdentityNotTaken):
        await identify_child(guest.path, CHILD, timeout_s=5)


async def test_a_failed_step_is_a_refusal(guest: FakeGuest) -> None:
    guest.answers["identify"] = lambda session, frame, request: session.refuse(
        frame.stream, "identify_failed", "set_mac: device busy"
    )
    with pytest.raises(GuestRefused, match="set_mac") as refused:
        await identify_child(guest.path, CHILD, timeout_s=5)
    assert refused.value.guest_code == "identify_failed"


async def test_an_answer_without_members_cuts_the_child_off(guest: FakeGuest) -> None:
    guest.answers["identify"] = lambda session, frame, request: session.ok(frame.stream, {})
    with pytest.raises(GuestMisbehaved):
        await identify_child(guest.path, CHILD, timeout_s=5)


async def test_an_open_channel_can_tell_an_identity_too(guest: FakeGuest) -> None:
    async with await open_channel(guest.path, timeout_s=5) as channel:
        answer = await identify(channel, CHILD)
    assert answer.hostname == "child"
