"""One connection to the program inside a guest.

A `Channel` is an asyncio protocol: bytes are parsed and answers handed to whoever waits for them in the
callback that received them, so there is no reader task that somebody would have to own, and a lost
connection fails everything that waits, at once.

The other end of the socket is a VMM, which takes one client at a time and accepts before its guest has
opened its port, or while the guest does not run yet. So connecting says nothing; only the guest's
answer to our own hello does, and a hello may have to be said again.
"""

import asyncio
import fcntl
import secrets
import struct
import termios
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, cast

import anyio

from ramet.core.errors import RametError
from ramet.guest.dial import dial
from ramet.guest.errors import (
    GuestMisbehaved,
    GuestRefused,
    GuestUnreachable,
    GuestVersionUnsupported,
    StreamsExhausted,
)
from ramet.wire.frames import (
    STREAM_MAX,
    Direction,
    Frame,
    FrameParser,
    FrameType,
    ProtocolError,
    Reset,
    Violation,
    encode,
)
from ramet.wire.messages import (
    Health,
    Hello,
    HelloAck,
    Refusal,
    Streams,
    Workload,
    WorkloadExited,
    dump,
    load,
    load_event,
    load_response,
)
from ramet.wire.version import PROTOCOL_VERSION

REQUEST_TIMEOUT_S: Final = 30.0
SYNC_TIMEOUT_S: Final = 120.0
"""A guest under software emulation may have hundreds of megabytes to write."""
HELLO_RETRY_S: Final = 1.0
HELLO_RETRY_S_MAX: Final = 4.0
FIRST_REQUEST_RETRY_S: Final = 10.0
"""A guest that is asked something with the hello would do it twice, and its port was open in the capture, so
nothing gets lost; where many children wake at once on few processors, one may need seconds to answer."""
STREAMS_COUNT_MAX: Final = 1024
"""Open requests and execs of one guest: bounds what its answers may occupy here."""

OnEvent = Callable[[WorkloadExited], None]
FirstRequest = Callable[[], tuple[str, Mapping[str, object]]]


class StreamSink(Protocol):
    """Who takes the frames of one stream. Called on the loop; must not block."""

    def received(self, frame: Frame) -> bool:
        """Take a frame; return whether it was the stream's last.

        Raises:
            ProtocolError: the guest may not send that.
        """

    def lost(self, error: RametError) -> None:
        """Learn that no frame will come any more."""


class _Answer:
    """The one RESPONSE to a request."""

    def __init__(self, op: str) -> None:
        self._op = op
        self.future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

    def received(self, frame: Frame) -> bool:
        if frame.type is not FrameType.RESPONSE:
            raise ProtocolError(f"{frame.type.name} in answer to {self._op}")
        answer = load_response(frame.payload)
        if not self.future.done():  # Nobody may be waiting any more; the stream was held for this frame.
            if isinstance(answer, Refusal):
                self.future.set_exception(GuestRefused(self._op, answer.code, answer.message))
            else:
                self.future.set_result(answer)
        return True

    def lost(self, error: RametError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Channel(asyncio.Protocol):
    """One open connection to a guest, from `open_channel`; an async context manager that closes it.

    Calls may be made at the same time, from several tasks. All raise

        GuestUnreachable: no answer in time, or the connection was lost (before or while waiting);
        GuestMisbehaved: the guest broke the protocol, and the connection was closed for it;
        GuestRefused: the guest answered with an error;
        StreamsExhausted: STREAMS_COUNT_MAX requests and execs are open.

    A call that was cancelled or timed out holds its stream until the guest answers it after all.
    """

    def __init__(self, name: str, on_event: OnEvent | None) -> None:
        self._name = name
        self._on_event = on_event
        self._parser = FrameParser(Direction.GUEST_TO_HOST)
        self._sinks: dict[int, StreamSink] = {}
        self._stream_last = 0
        self._nonce = ""
        self._ack: asyncio.Future[HelloAck] | None = None  # What a hello waits for.
        self._error: RametError | None = None  # Why the connection is of no use any more.
        self._transport: asyncio.Transport | None = None
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.hello_count = 0
        """How often we had to say hello."""
        self.hello: HelloAck | None = None
        """What the guest said of itself when the channel was opened."""

    # -- Requests

    async def request(
        self, op: str, *, timeout_s: float = REQUEST_TIMEOUT_S, **members: object
    ) -> dict[str, Any]:
        """Ask the guest for `op` and return the members of its answer."""
        return await self.send_request(op, members).wait(timeout_s)

    def send_request(self, op: str, members: Mapping[str, object]) -> "PendingAnswer":
        """Send a request now, and let its answer be awaited later (pipelining)."""
        answer = _Answer(op)
        stream = self.open_stream(answer)
        self.send(Frame(FrameType.REQUEST, stream, dump({"op": op, **members})))
        return PendingAnswer(self, op, answer.future)

    async def health(self, *, timeout_s: float = REQUEST_TIMEOUT_S) -> Health:
        """Return how the workload is."""
        answer = await self.request("health", timeout_s=timeout_s)
        with self.judging():
            return Health.from_json(answer)

    async def sync(self, *, timeout_s: float = SYNC_TIMEOUT_S) -> None:
        """Return when the guest's file systems are written out."""
        await self.request("sync", timeout_s=timeout_s)

    async def freeze(self, *, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """Return when every process of the workload and of execs stands still."""
        answer = await self.request("freeze", timeout_s=timeout_s)
        if answer.get("frozen") is not True:
            with self.judging():
                raise ProtocolError(f"freeze was answered with {answer!r}")

    async def thaw(self, *, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """Let frozen processes run. Harmless when nothing is frozen."""
        await self.request("thaw", timeout_s=timeout_s)

    async def shutdown(self, *, grace_s: float = 5.0, timeout_s: float = REQUEST_TIMEOUT_S) -> bool:
        """Ask the guest to end its workload (SIGTERM, `grace_s`, SIGKILL), sync and power off.

        Returns True when the guest has taken the request; that it is off, the VMM tells. False when the
        connection was lost first: it may be off already, or may not have heard.
        """
        pending = self.send_request("shutdown", {"timeout_s": grace_s})
        try:
            await pending.wait(timeout_s)
        except GuestUnreachable:
            if self._error is None:
                raise
            return False
        return True

    @property
    def workload(self) -> Workload:
        """The workload as it was when the channel was opened."""
        assert self.hello is not None, "the channel is open"
        assert self.hello.workload is not None, "of our version"
        return self.hello.workload

    @property
    def is_lost(self) -> bool:
        """Tell whether the connection is of no use any more."""
        return self._error is not None

    # -- Streams, for this package

    def open_stream(self, sink: StreamSink) -> int:
        """Give `sink` a stream of its own, until it says that it is over."""
        if self._error is not None:
            raise self._error.with_traceback(None)
        if len(self._sinks) >= STREAMS_COUNT_MAX:
            raise StreamsExhausted(f"{self._name}: {len(self._sinks)} requests are open")
        stream = self._stream_last
        while True:  # The one longest unused, so that late frames of an ended stream find nobody.
            stream = stream % STREAM_MAX + 1
            if stream not in self._sinks:
                break
        self._stream_last = stream
        self._sinks[stream] = sink
        return stream

    @property
    def open_stream_count(self) -> int:
        """How many requests and execs the guest has not finished."""
        return len(self._sinks)

    def send(self, frame: Frame) -> None:
        """Send a frame, unless the connection is gone (then those who wait have been told)."""
        self._write(encode(frame))

    def fail(self, error: RametError) -> None:
        """Give the connection up and tell everybody who waits. The first reason stands."""
        if self._error is not None:
            return
        self._error = error
        if self._transport is not None:
            self._transport.abort()
        if self._ack is not None and not self._ack.done():
            self._ack.set_exception(error)
            self._ack.exception()  # Seen, should nobody wait for it any more.
        sinks, self._sinks = self._sinks, {}
        for sink in sinks.values():
            sink.lost(error)

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Inside, a ProtocolError ends the connection and becomes GuestMisbehaved."""
        try:
            yield
        except ProtocolError as broken:
            error = _misbehaved(broken)
            self.fail(error)
            raise error from broken

    # -- Opening and closing

    async def wait_lost(self) -> RametError:
        """Return when the connection is gone, with the reason."""
        await asyncio.shield(self._lost)
        assert self._error is not None
        return self._error

    async def aclose(self) -> None:
        """Close the connection; what still waits fails with GuestUnreachable. Idempotent."""
        self.fail(GuestUnreachable(f"{self._name}: the connection was closed by us"))
        if self._transport is not None:
            await asyncio.shield(self._lost)

    async def __aenter__(self) -> "Channel":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def say_hello(self, streams: Streams, first: FirstRequest | None) -> "PendingAnswer | None":
        """Say hello until the guest has answered; return the pending answer to `first`, if there is one."""
        retry_s = HELLO_RETRY_S if first is None else FIRST_REQUEST_RETRY_S
        retry_s_max = max(retry_s, HELLO_RETRY_S_MAX)
        while True:
            if self._error is not None:  # Lost before there was anybody to tell.
                raise self._error.with_traceback(None)
            answer = self._say_hello_once(streams, first)
            assert self._ack is not None
            while not self._ack.done():
                await asyncio.wait([self._ack], timeout=retry_s)
                retry_s = min(2 * retry_s, retry_s_max)
                # Bytes the VMM has not fetched wait for the guest, who will get them: saying it again
                # would only make it do everything twice. Fetched ones may have met a closed port.
                if not self._ack.done() and self.unfetched_bytes() == 0:
                    break
            else:
                ack = self._ack.result()
                if ack.version != PROTOCOL_VERSION:
                    error = GuestVersionUnsupported(
                        f"{self._name}: the guest speaks version {ack.version} of the protocol",
                        remedy="start the instance again",
                        version=ack.version,
                    )
                    self.fail(error)
                    raise error
                self.hello = ack
                return answer

    def _say_hello_once(self, streams: Streams, first: FirstRequest | None) -> "PendingAnswer | None":
        self._ack = asyncio.get_running_loop().create_future()
        self._nonce = secrets.token_hex(16)
        self.hello_count += 1
        self._sinks.clear()  # The first request of an earlier hello, which the guest forgets.
        data = encode(Frame(FrameType.HELLO, 0, dump(Hello(self._nonce, streams).to_json())))
        answer = None
        if first is not None:
            op, members = first()
            sink = _Answer(op)
            request = Frame(FrameType.REQUEST, self.open_stream(sink), dump({"op": op, **members}))
            data += encode(request)
            answer = PendingAnswer(self, op, sink.future)
        self._write(data)
        return answer

    def _write(self, data: bytes) -> None:
        if self._error is None:
            assert self._transport is not None
            self._transport.write(data)

    def unfetched_bytes(self) -> int:
        """Return how much of what we sent still lies with us or in the socket (TIOCOUTQ, unix(7))."""
        if self._transport is None or self._transport.is_closing():
            return 0
        fd: int = self._transport.get_extra_info("socket").fileno()
        (unsent,) = struct.unpack("i", fcntl.ioctl(fd, termios.TIOCOUTQ, bytes(4)))
        return self._transport.get_write_buffer_size() + int(unsent)

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for event in self._parser.feed(data):
                if self._error is not None:
                    return
                self._take(event)
        except ProtocolError as error:
            self.fail(_misbehaved(error))

    def eof_received(self) -> bool:
        self.fail(GuestUnreachable(f"{self._name}: the VMM hung up"))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        error = GuestUnreachable(f"{self._name}: the connection was lost")
        error.__cause__ = exc
        self.fail(error)
        if not self._lost.done():
            self._lost.set_result(None)

    def _take(self, event: Frame | Reset | Violation) -> None:
        if self._ack is None or not self._ack.done():
            # All else is from before our hello: the parent's conversation, or our own earlier one.
            if isinstance(event, Frame) and event.type is FrameType.HELLO_ACK:
                self._take_hello(event)
        elif isinstance(event, Violation):
            raise ProtocolError(event.reason)
        elif isinstance(event, Reset):
            raise ProtocolError("a hello nobody asked for")
        elif event.type is FrameType.EVENT:
            happened = load_event(event.payload)
            if happened is not None and self._on_event is not None:
                self._on_event(happened)
        else:
            sink = self._sinks.get(event.stream)
            # A frame for nobody is the late echo of a stream that is over, and harmless.
            if sink is not None and sink.received(event):
                self._sinks.pop(event.stream, None)

    def _take_hello(self, frame: Frame) -> None:
        try:
            ack = HelloAck.from_json(load(frame.payload))
        except ProtocolError:
            return  # Not an answer to our hello, whatever it is; the time limit judges.
        if ack.nonce == self._nonce and self._ack is not None:
            self._ack.set_result(ack)


class PendingAnswer:
    """A request under way."""

    def __init__(self, channel: Channel, op: str, future: asyncio.Future[dict[str, Any]]) -> None:
        self._channel, self._op, self._future = channel, op, future
        # Whoever loses interest before the answer is an error is not told of it by the garbage collector.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())

    async def wait(self, timeout_s: float) -> dict[str, Any]:
        """Return the members of the answer. Raises as `Channel` says."""
        try:
            with anyio.fail_after(timeout_s):
                return await self._future
        except TimeoutError as error:
            raise GuestUnreachable(
                f"the guest did not answer {self._op} within {timeout_s:g} s", op=self._op
            ) from error


def _misbehaved(broken: ProtocolError) -> GuestMisbehaved:
    error = GuestMisbehaved(f"the guest broke the protocol: {broken}")
    error.__cause__ = broken
    return error


async def open_channel(
    socket_path: Path, *, streams: Streams = "kill", timeout_s: float, on_event: OnEvent | None = None
) -> Channel:
    """Connect to the guest behind `socket_path` and return when it has answered our hello.

    Args:
        socket_path: unix socket of the guest's agent port; its listener exists.
        streams: what becomes of execs that an earlier connection left behind.
        timeout_s: for all of it, the guest's boot included if it has not booted yet.
        on_event: called on the loop with what the guest tells unasked; must not block or raise.

    Raises:
        GuestUnreachable: nobody listens, the VMM hung up, or no answer came in time. A socket that
            another client holds looks like a guest that does not answer.
        GuestVersionUnsupported: the guest speaks another version.
    """
    channel, _ = await open_channel_with(
        socket_path, None, streams=streams, timeout_s=timeout_s, on_event=on_event
    )
    return channel


async def open_channel_with(
    socket_path: Path,
    first: FirstRequest | None,
    *,
    streams: Streams,
    timeout_s: float,
    on_event: OnEvent | None,
) -> tuple[Channel, dict[str, Any]]:
    """As `open_channel`, with a request right behind the hello: one round trip for both.

    `first` is called for each hello said, to return the op and members to send. Returns the channel
    and the answer, `{}` if there was no request.
    """
    channel = Channel(socket_path.parent.name, on_event)
    answer: dict[str, Any] = {}
    try:
        with anyio.fail_after(timeout_s):
            connected = await dial(socket_path)
            await asyncio.get_running_loop().create_unix_connection(lambda: channel, sock=connected)
            pending = await channel.say_hello(streams, first)
            if pending is not None:
                answer = await pending.wait(timeout_s)
    except TimeoutError as late:
        untaken = channel.unfetched_bytes()
        error = GuestUnreachable(
            f"the guest did not answer within {timeout_s:g} s",
            remedy="look at its console log; if it has booted, another client may hold its agent socket",
            unfetched_bytes=untaken,
        )
        channel.fail(error)
        raise error from late
    except BaseException:
        channel.fail(GuestUnreachable("the connection was given up while it was opened"))
        raise
    return channel, answer
