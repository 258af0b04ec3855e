"""A process in a guest, and its two byte streams.

The guest may write only as much as the host has given credit for, and credit is given back when output
is taken by its reader; so a reader who is slow stops the process, not the daemon, and at most
CREDIT_BYTES of output wait here for each process.
"""

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from enum import Enum
from signal import SIGKILL
from types import TracebackType
from typing import Final, Self

import anyio

from ramet.core.errors import RametError
from ramet.guest.channel import REQUEST_TIMEOUT_S, Channel
from ramet.guest.errors import ExecInvalid, GuestUnreachable
from ramet.wire.frames import (
    CREDIT_BYTES,
    PAYLOAD_BYTES_MAX,
    Frame,
    FrameType,
    ProtocolError,
    credit,
    decode_credit,
)
from ramet.wire.messages import ExitStatus, Refusal, dump, load, load_response, parse_int

_CREDIT_STEP_BYTES: Final = CREDIT_BYTES // 4
"""Credit is given back in steps of that size, so that reading small pieces is not a frame for each."""


class Output(Enum):
    """Which of its two outputs a process wrote to."""

    STDOUT = "stdout"
    STDERR = "stderr"


class GuestProcess(ABC):
    """One process in a guest; an async context manager.

    Leaving the context before the process has ended kills it. A connection that is lost makes every
    call raise GuestUnreachable or GuestMisbehaved; `output` first yields what had arrived.
    """

    op: str
    """What the guest is asked for to start it."""

    def __init__(self, channel: Channel, *, stdin: bool) -> None:
        self._channel = channel
        self._stream = 0
        self._changed = asyncio.Event()  # Set when anything below did.
        self._chunks: deque[tuple[Output, bytearray]] = deque()
        self._received_credit = CREDIT_BYTES  # What the guest may still send.
        self._owed_credit = 0  # What we have consumed and not yet given back.
        self._stdin_credit = CREDIT_BYTES
        self._stdin: deque[memoryview] = deque()
        self._stdin_ended = not stdin  # No more is to be sent than waits in `_stdin`.
        self._eof_sent = not stdin
        self._reading = False
        self._abandoned = False
        self._error: RametError | None = None
        self.pid: int | None = None
        """The process in the guest; None if it could not be started."""
        self.exit: ExitStatus | None = None
        """How it ended; None while it runs."""

    async def output(self) -> AsyncGenerator[tuple[Output, bytes], None]:
        """Yield what the process writes, in the order it arrives, to its end.

        One iterator for both outputs, because they share one credit: a reader of one alone would in the
        end wait for ever. Taking a chunk is what gives its credit back. For one reader.
        """
        assert not self._reading, "output has one reader"
        self._reading = True
        try:
            while True:
                while self._chunks:
                    which, chunk = self._chunks.popleft()
                    self._give_back(len(chunk))
                    yield which, bytes(chunk)
                if self.exit is not None:
                    return
                await self._wait_changed()
        finally:
            self._reading = False
            self._changed.set()  # A `wait` may now drop what nobody reads.

    async def write(self, data: bytes) -> None:
        """Send `data` to the process's stdin; return when the guest has room for all of it.

        What the process has not read when it ends, or closes its stdin, is dropped.
        """
        self.queue(data)
        while self._stdin and self.exit is None:
            await self._wait_changed()

    def queue(self, data: bytes) -> None:
        """Leave `data` to be sent to stdin as the guest takes it. `data` is held until then."""
        assert not self._stdin_ended, "stdin was not asked for, or has been closed"
        if self._error is not None:
            raise self._error.with_traceback(None)
        if data and self.exit is None:
            self._stdin.append(memoryview(data))
            self._pump()

    def write_eof(self) -> None:
        """Close the process's stdin behind what was written. Idempotent."""
        if not self._stdin_ended:
            self._stdin_ended = True
            self._pump()

    def signal(self, number: int) -> None:
        """Send a signal to the process. Without effect once it has ended."""
        if self.exit is None and self._error is None:
            self._channel.send(Frame(FrameType.SIGNAL, self._stream, dump({"signal": int(number)})))

    async def wait(self) -> ExitStatus:
        """Return how the process ended. Output that nobody has begun to read is dropped."""
        while self.exit is None:
            if not self._reading:
                self._drop_output()
            await self._wait_changed()
        return self.exit

    def close(self) -> None:
        """Kill the process if it still runs, and forget it. Its stream is free when the guest says so."""
        if self.exit is None and not self._abandoned:
            self.signal(SIGKILL)
            self._abandoned = True
            self._stdin.clear()
            self._drop_output()
            self._fail(GuestUnreachable(f"the {self.op} was closed by us"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    # -- What the channel delivers: ramet.guest.channel.StreamSink

    def received(self, frame: Frame) -> bool:
        match frame.type:
            case FrameType.STDOUT | FrameType.STDERR:
                self._take_output(frame)
            case FrameType.CREDIT:
                self._stdin_credit += decode_credit(frame.payload)
                self._pump()
            case FrameType.EXIT:
                self._finish(ExitStatus.from_json(load(frame.payload)))
                return True
            case FrameType.RESPONSE:
                return self._take_response(frame)
            case _:
                raise ProtocolError(f"{frame.type.name} on {self.op}")
        self._changed.set()
        return False

    def lost(self, error: RametError) -> None:
        self._fail(error)

    async def start(self, members: Mapping[str, object]) -> None:
        """Send the request and return when the process runs, or has ended. For a subclass's opener, once.

        Raises:
            ExecInvalid: the request does not fit one frame.
            GuestUnreachable, GuestMisbehaved, GuestRefused, StreamsExhausted: see `Channel`.
        """
        data = dump({"op": self.op, **members})
        if len(data) > PAYLOAD_BYTES_MAX:
            raise ExecInvalid(f"the request takes {len(data)} bytes, more than {PAYLOAD_BYTES_MAX}")
        self._stream = self._channel.open_stream(self)
        self._channel.send(Frame(FrameType.REQUEST, self._stream, data))
        try:
            with anyio.fail_after(REQUEST_TIMEOUT_S):
                while self.pid is None and self.exit is None:
                    await self._wait_changed()
        except TimeoutError as late:
            self.close()
            raise GuestUnreachable(
                f"the guest did not start the {self.op} within {REQUEST_TIMEOUT_S:g} s"
            ) from late
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _refused(self, refusal: Refusal) -> None:
        """Take the guest's refusal: `_fail`, or `_finish`."""

    def _accepted(self, answer: Mapping[str, object]) -> RametError | None:
        """Judge the rest of the guest's answer; an error is why it is of no use."""
        return None

    def _take_response(self, frame: Frame) -> bool:
        answer = load_response(frame.payload)
        if self.pid is not None:
            raise ProtocolError(f"a second answer to {self.op}")
        if isinstance(answer, Refusal):
            self._refused(answer)
            return True
        self.pid = parse_int(answer, "pid")
        error = self._accepted(answer)
        if error is not None:
            self._abandoned = True
            self._fail(error)
        if self._abandoned:
            self._channel.send(Frame(FrameType.SIGNAL, self._stream, dump({"signal": int(SIGKILL)})))
        self._changed.set()
        return False

    def _take_output(self, frame: Frame) -> None:
        size = len(frame.payload)
        if size > self._received_credit:
            raise ProtocolError("output beyond its credit")
        self._received_credit -= size
        if self._abandoned:
            self._give_back(size)
            return
        which = Output.STDOUT if frame.type is FrameType.STDOUT else Output.STDERR
        if self._chunks and self._chunks[-1][0] is which:
            self._chunks[-1][1].extend(
                frame.payload
            )  # Else a million frames of a byte are a million objects.
        elif size:
            self._chunks.append((which, bytearray(frame.payload)))

    def _finish(self, status: ExitStatus) -> None:
        self.exit = status
        self._stdin.clear()
        self._changed.set()

    def _fail(self, error: RametError) -> None:
        if self._error is None:
            self._error = error
            self._changed.set()

    async def _wait_changed(self) -> None:
        if self._error is not None:
            raise self._error.with_traceback(None)
        self._changed.clear()
        await self._changed.wait()

    def _pump(self) -> None:
        """Send of what waits for stdin as much as there is credit for."""
        while self._stdin and self._stdin_credit > 0:
            piece = self._stdin[0][: min(self._stdin_credit, PAYLOAD_BYTES_MAX)]
            self._stdin_credit -= len(piece)
            self._channel.send(Frame(FrameType.STDIN, self._stream, bytes(piece)))
            rest = self._stdin.popleft()[len(piece) :]
            if rest:
                self._stdin.appendleft(rest)
        if self._stdin_ended and not self._stdin and not self._eof_sent and self.exit is None:
            self._eof_sent = True
            self._channel.send(Frame(FrameType.STDIN_EOF, self._stream))

    def _drop_output(self) -> None:
        while self._chunks:
            self._give_back(len(self._chunks.popleft()[1]))

    def _give_back(self, size: int) -> None:
        self._owed_credit += size
        if self._owed_credit >= _CREDIT_STEP_BYTES and self.exit is None:
            owed, self._owed_credit = self._owed_credit, 0
            self._received_credit += owed
            self._channel.send(credit(self._stream, owed))
