"""The host's end of a guest's connection, with a guest that may say anything."""

import asyncio
from typing import Any, cast

from ramet.core.errors import RametError
from ramet.guest.channel import Channel
from ramet.wire.frames import Direction, Frame, FrameParser, FrameType, encode
from ramet.wire.messages import HelloAck, Workload, dump, load


class _Transport:
    """Keeps what is written and answers the hello, so that the rest of the input is believed."""

    def __init__(self, channel: Channel) -> None:
        self.is_aborted = False
        self.written = 0
        self._channel = channel
        self._parser = FrameParser(Direction.HOST_TO_GUEST)
        self._greeted = False

    def write(self, data: bytes) -> None:
        self.written += len(data)
        for event in self._parser.feed(data):
            if isinstance(event, Frame) and event.type is FrameType.HELLO and not self._greeted:
                self._greeted = True
                nonce = str(load(event.payload)["nonce"])
                ack = HelloAck(nonce, "fuzz", Workload("running", 1)).to_json()
                self._channel.data_received(encode(Frame(FrameType.HELLO_ACK, 0, dump(ack))))

    def abort(self) -> None:
        self.is_aborted = True

    def is_closing(self) -> bool:
        return True


def channel(data: bytes) -> None:
    """Whatever a guest says ends in an answer, or in a typed error for all who wait; nothing else escapes."""
    asyncio.run(_converse(data))


async def _converse(data: bytes) -> None:
    happened: list[object] = []
    conversation = Channel("guest", happened.append)
    transport = _Transport(conversation)
    conversation.connection_made(cast(asyncio.Transport, transport))
    await conversation.say_hello("kill", None)
    pending = [conversation.send_request("health", {}) for _ in range(2)]
    half = len(data) // 2
    conversation.data_received(data[:half])
    conversation.data_received(data[half:])
    assert conversation.is_lost == transport.is_aborted, "a connection given up is closed, and no other"
    conversation.connection_lost(None)
    for answer in pending:
        try:
            found: dict[str, Any] = await answer.wait(1)
            assert isinstance(found, dict)
        except RametError:
            pass
    assert conversation.open_stream_count == 0, "somebody still waits for a guest that is gone"
