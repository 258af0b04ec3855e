"""A process started in a guest.

The guest may write only as much as the host has given credit for, and credit is given back when output
is taken by its reader; so a reader who is slow stops the process, not the daemon, and at most
CREDIT_BYTES of output wait here for each exec.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from signal import SIGKILL
from types import TracebackType
from typing import Final

import anyio

from ramet.core.errors import RametError
from ramet.guest.channel import REQUEST_TIMEOUT_S, Channel
from ramet.guest.errors import (
    ExecInvalid,
    ExecOutputTooLong,
    GuestRefused,
    GuestUnreachable,
    NoSuchDirectory,
    NoSuchUser,
)
from ramet.wire.frames import (
    CREDIT_BYTES,
    PAYLOAD_BYTES_MAX,
    Frame,
    FrameType,
    ProtocolError,
    credit,
    decode_credit,
)
from ramet.wire.messages import ExecRequest, ExitStatus, Refusal, dump, load, load_response

EXEC_OUTPUT_BYTES_MAX: Final = 8 << 20
"""What `run` collects of stdout and stderr together before it kills the process."""
EXEC_GRACE_S: Final = 10.0
"""How much later than its own time limit the end of a process may reach us."""
COMMAND_NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126

_CREDIT_STEP_BYTES: Final = CREDIT_BYTES // 4
"""Credit is given back in steps of that size, so that reading small pieces is not a frame for each."""

_SHELL_CODES: Final = {
    "command_not_found": (COMMAND_NOT_FOUND, "command not found"),
    "not_executable": (NOT_EXECUTABLE, "cannot be executed"),
}


class Output(Enum):
    """Which of its two outputs a process wrote to."""

    STDOUT = "stdout"
    STDERR = "stderr"


@dataclass(frozen=True, slots=True)
class Completed:
    """A process that has ended, and everything it wrote."""

    stdout: bytes
    stderr: bytes
    exit: ExitStatus


class Exec:
    """One process in a guest, from `open_exec`; an async context manager.

    Leaving the context before the process has ended kills it. A connection that is lost makes every
    call raise GuestUnreachable or GuestMisbehaved; `output` first yields what had arrived.
    """

    def __init__(self, channel: Channel, request: ExecRequest) -> None:
        self._channel = channel
        self._request = request
        self._stream = 0
        self._changed = asyncio.Event()  # Set when anything below did.
        self._chunks: deque[tuple[Output, bytearray]] = deque()
        self._received_credit = CREDIT_BYTES  # What the guest may still send.
        self._owed_credit = 0  # What we have consumed and not yet given back.
        self._stdin_credit = CREDIT_BYTES
        self._stdin: deque[memoryview] = deque()
        self._stdin_ended = not request.stdin  # No more is to be sent than waits in `_stdin`.
        self._eof_sent = not request.stdin
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
            self._fail(GuestUnreachable("the exec was closed by us"))

    async def __aenter__(self) -> "Exec":
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
                raise ProtocolError(f"{frame.type.name} on an exec")
        self._changed.set()
        return False

    def lost(self, error: RametError) -> None:
        self._fail(error)

    def start(self) -> None:
        """Send the request. For `open_exec`, once."""
        message = {"op": "exec", **self._request.to_json()}
        data = dump(message)
        if len(data) > PAYLOAD_BYTES_MAX:
            raise ExecInvalid(f"argv and env take {len(data)} bytes, more than {PAYLOAD_BYTES_MAX}")
        self._stream = self._channel.open_stream(self)
        self._channel.send(Frame(FrameType.REQUEST, self._stream, data))

    async def wait_started(self) -> None:
        """Return when the process runs or has ended. For `open_exec`."""
        while self.pid is None and self.exit is None:
            await self._wait_changed()

    def _take_response(self, frame: Frame) -> bool:
        answer = load_response(frame.payload)
        if self.pid is not None:
            raise ProtocolError("a second answer to an exec")
        if not isinstance(answer, Refusal):
            pid = answer.get("pid")
            if isinstance(pid, bool) or not isinstance(pid, int):
                raise ProtocolError(f"an exec with pid {pid!r}")
            self.pid = pid
            if self._abandoned:
                self._channel.send(Frame(FrameType.SIGNAL, self._stream, dump({"signal": int(SIGKILL)})))
            self._changed.set()
            return False
        if answer.code in _SHELL_CODES:
            code, text = _SHELL_CODES[answer.code]
            line = f"ramet: {self._request.argv[0]}: {text}\n".encode("utf-8", "replace")
            self._chunks.append((Output.STDERR, bytearray(line)))
            self._finish(ExitStatus(code))
        elif answer.code == "no_such_user":
            self._fail(NoSuchUser(f"the guest has no user {self._request.user!r}"))
        elif answer.code == "no_such_directory":
            self._fail(NoSuchDirectory(f"the guest has no directory {self._request.cwd!r}"))
        else:
            self._fail(GuestRefused("exec", answer.code, answer.message))
        return True

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


async def open_exec(
    channel: Channel,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    user: str | None = None,
    timeout_s: float = 0.0,
    stdin: bool = False,
) -> Exec:
    """Start a process in the guest and return when it runs.

    A command that does not exist or cannot be executed is an `Exec` that has ended, with code 127 or 126
    and a line on stderr, as a shell would have it.

    Args:
        env: added to the workload's.
        cwd: None means the workload's.
        user: as in an OCI image config; None means the workload's.
        timeout_s: after which the guest kills it; 0 means never.
        stdin: whether there will be any; without, it is closed from the beginning.

    Raises:
        ExecInvalid, NoSuchUser, NoSuchDirectory: it cannot be run like that.
        GuestUnreachable, GuestMisbehaved, GuestRefused, StreamsExhausted: see `Channel`.
    """
    request = ExecRequest(tuple(argv), dict(env or {}), cwd, user, timeout_s, stdin)
    _check(request)
    process = Exec(channel, request)
    process.start()
    try:
        with anyio.fail_after(REQUEST_TIMEOUT_S):
            await process.wait_started()
    except TimeoutError as late:
        process.close()
        raise GuestUnreachable(
            f"the guest did not start the process within {REQUEST_TIMEOUT_S:g} s"
        ) from late
    except BaseException:
        process.close()
        raise
    return process


async def run(
    channel: Channel,
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    user: str | None = None,
    timeout_s: float = 0.0,
    output_bytes_max: int = EXEC_OUTPUT_BYTES_MAX,
) -> Completed:
    """Run a process in the guest to its end and return everything it wrote. Cancelling kills it.

    Arguments and errors as `open_exec`, and
    Raises:
        ExecOutputTooLong: it wrote more than `output_bytes_max`; it has been killed.
    """
    written = {Output.STDOUT: bytearray(), Output.STDERR: bytearray()}
    written_bytes = 0
    limit_s = timeout_s + EXEC_GRACE_S if timeout_s else None
    try:
        with anyio.fail_after(limit_s):
            async with await open_exec(
                channel, argv, env=env, cwd=cwd, user=user, timeout_s=timeout_s, stdin=bool(stdin)
            ) as process:
                if stdin:
                    process.queue(stdin)
                    process.write_eof()
                async for which, chunk in process.output():
                    written_bytes += len(chunk)
                    if written_bytes > output_bytes_max:
                        raise ExecOutputTooLong(
                            f"the process wrote more than {output_bytes_max} bytes",
                            remedy="send its output to a file in the guest, or read it as a stream",
                        )
                    written[which] += chunk
                status = await process.wait()
    except TimeoutError as late:
        raise GuestUnreachable(f"the guest did not end the process within {limit_s:g} s") from late
    return Completed(bytes(written[Output.STDOUT]), bytes(written[Output.STDERR]), status)


def _check(request: ExecRequest) -> None:
    """Refuse what no process can be given.

    Raises:
        ExecInvalid: there is no command, or a text with a NUL or half a surrogate pair in it.
    """
    if not request.argv or not request.argv[0]:
        raise ExecInvalid("there is no command")
    for name in request.env:
        if not name or "=" in name:
            raise ExecInvalid(f"{name!r} cannot be the name of a variable")
    texts = (*request.argv, *request.env, *request.env.values(), request.cwd or "", request.user or "")
    for text in texts:
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise ExecInvalid(f"{text[:40]!r} has a character that no process can be given")
