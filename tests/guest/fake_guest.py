"""A guest without a VM: its side of the protocol on a unix socket, well-behaved unless told otherwise."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ramet.wire.frames import (
    CREDIT_BYTES,
    Direction,
    Frame,
    FrameParser,
    FrameType,
    Reset,
    Violation,
    credit,
    decode_credit,
    encode,
)
from ramet.wire.messages import (
    ExecRequest,
    ExitStatus,
    Health,
    Hello,
    HelloAck,
    Identity,
    IdentityAnswer,
    Refusal,
    Workload,
    dump,
    load,
)

RUNNING = Workload("running", pid=300)
Answer = Callable[["Session", Frame, dict[str, Any]], None]


class FakeGuest:
    """One guest. What it should do wrong is set on it before somebody connects."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hellos_missed = 0  # How many hellos get lost, as if the guest had not opened its port.
        self.before_ack = b""  # What lies in the pipe from the parent's conversation.
        self.answers: dict[str, Answer] = {}  # By op, instead of the right answer.
        self.version = 1
        self.identity: Identity | None = None
        self.workload = RUNNING
        self.hellos: list[Hello] = []
        self.requests: list[dict[str, Any]] = []
        self.signals: list[tuple[int, int]] = []
        self.unread_bytes_max = 0
        self.sessions: list[Session] = []
        self.connected = asyncio.Event()
        self.asked = asyncio.Event()
        self.signalled = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> "FakeGuest":
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(lambda: Session(self), str(self.path))
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for session in self.sessions:
            session.hang_up()
        await self._server.wait_closed()

    @property
    def session(self) -> "Session":
        return self.sessions[-1]


class Session(asyncio.Protocol):
    """One connection of a host."""

    def __init__(self, guest: FakeGuest) -> None:
        self.guest = guest
        self.parser = FrameParser(Direction.HOST_TO_GUEST)
        self.processes: dict[int, Process] = {}
        self.transport: asyncio.Transport | None = None
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.guest.sessions.append(self)
        self.guest.connected.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    def data_received(self, data: bytes) -> None:
        for event in self.parser.feed(data):
            if isinstance(event, Reset):
                self.processes.clear()
            elif isinstance(event, Violation):
                raise AssertionError(event.reason)  # The host is ours, and never breaks the protocol.
            else:
                self.received(event)

    def received(self, frame: Frame) -> None:
        match frame.type:
            case FrameType.HELLO:
                self.greet(Hello.from_json(load(frame.payload)))
            case FrameType.REQUEST:
                request = load(frame.payload)
                self.guest.requests.append(request)
                answer = self.guest.answers.get(request["op"])
                if answer:
                    answer(self, frame, request)
                else:
                    self.answer(frame, request)
                self.guest.asked.set()
            case _:
                process = self.processes.get(frame.stream)
                if process:
                    process.received(frame)

    def greet(self, hello: Hello) -> None:
        self.guest.hellos.append(hello)
        if len(self.guest.hellos) <= self.guest.hellos_missed:
            self.parser = FrameParser(Direction.HOST_TO_GUEST)  # Deaf to what follows, too.
            return
        ack = HelloAck(hello.nonce, "0.1.0", self.guest.workload, self.guest.version)
        self.write(self.guest.before_ack + encode(Frame(FrameType.HELLO_ACK, 0, dump(ack.to_json()))))

    def answer(self, frame: Frame, request: dict[str, Any]) -> None:
        match request["op"]:
            case "health":
                self.ok(frame.stream, Health(self.guest.workload, 1.5).to_json())
            case "freeze":
                self.ok(frame.stream, {"frozen": True})
            case "sync" | "thaw" | "shutdown":
                self.ok(frame.stream, {})
            case "identify":
                identity = Identity.from_json(request)
                self.guest.identity = identity
                network = identity.network
                taken = IdentityAnswer(
                    network.mac if network else None,
                    network.ip if network else None,
                    identity.hostname,
                    False,
                )
                self.ok(frame.stream, taken.to_json())
            case "exec":
                self.exec(frame.stream, ExecRequest.from_json(request))
            case op:
                self.refuse(frame.stream, "unknown_op", op)

    def exec(self, stream: int, request: ExecRequest) -> None:
        kind = PROCESSES.get(request.argv[0])
        if kind is None:
            self.refuse(stream, "command_not_found", request.argv[0])
        else:
            self.ok(stream, {"pid": 400 + stream})
            self.processes[stream] = process = kind(self, stream, request)
            process.start()

    def ok(self, stream: int, members: dict[str, object]) -> None:
        self.send(FrameType.RESPONSE, stream, dump({"ok": members}))

    def refuse(self, stream: int, code: str, message: str) -> None:
        self.send(FrameType.RESPONSE, stream, dump(Refusal(code, message).to_json()))

    def send(self, kind: FrameType, stream: int, payload: bytes) -> None:
        self.write(encode(Frame(kind, stream, payload)))

    def write(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(data)

    def hang_up(self) -> None:
        assert self.transport is not None
        self.transport.abort()


class Process:
    """Runs until it gets a signal. Others do more."""

    def __init__(self, session: Session, stream: int, request: ExecRequest) -> None:
        self.session, self.stream, self.request = session, stream, request
        self.credit = CREDIT_BYTES
        self.output: list[tuple[FrameType, bytes]] = []
        self.status: ExitStatus | None = None  # Set when it has ended but not yet written everything.

    def start(self) -> None: ...

    def received(self, frame: Frame) -> None:
        match frame.type:
            case FrameType.SIGNAL:
                number = load(frame.payload)["signal"]
                self.session.guest.signals.append((self.stream, number))
                self.output.clear()
                self.end(ExitStatus(None, number))
                self.session.guest.signalled.set()
            case FrameType.CREDIT:
                self.credit += decode_credit(frame.payload)
                self.flush()
            case FrameType.STDIN:
                self.stdin(frame.payload)
            case FrameType.STDIN_EOF:
                self.stdin_eof()

    def stdin(self, data: bytes) -> None:
        """Read and forget."""
        self.session.write(encode(credit(self.stream, len(data))))

    def stdin_eof(self) -> None: ...

    def put(self, data: bytes, kind: FrameType = FrameType.STDOUT) -> None:
        self.output.append((kind, data))
        self.flush()

    def flush(self) -> None:
        while self.output and self.credit:
            kind, data = self.output.pop(0)
            size = min(len(data), self.credit, 65_536)
            self.credit -= size
            self.session.send(kind, self.stream, data[:size])
            if data[size:]:
                self.output.insert(0, (kind, data[size:]))
        if self.status and not self.output and self.stream in self.session.processes:
            self.session.send(FrameType.EXIT, self.stream, dump(self.status.to_json()))
            del self.session.processes[self.stream]

    def end(self, status: ExitStatus) -> None:
        self.status = status
        self.flush()


class Cat(Process):
    """Writes what it reads, giving credit as it does; ends at the end of its input."""

    def stdin(self, data: bytes) -> None:
        self.put(data)
        self.session.write(encode(credit(self.stream, len(data))))

    def stdin_eof(self) -> None:
        self.end(ExitStatus(0))


class Say(Process):
    """`say WHAT TIMES`: writes WHAT to stdout and its length to stderr, TIMES times; ends with code 3."""

    def start(self) -> None:
        what = self.request.argv[1].encode()
        for _ in range(int(self.request.argv[2])):
            self.put(what)
            self.put(b"%d\n" % len(what), FrameType.STDERR)
        self.end(ExitStatus(3))


class Miser(Process):
    """Reads its stdin only when poked by a signal, 1000 bytes at a time."""

    def start(self) -> None:
        self.unread = 0

    def stdin(self, data: bytes) -> None:
        self.unread += len(data)
        guest = self.session.guest
        guest.unread_bytes_max = max(guest.unread_bytes_max, self.unread)
        assert self.unread <= CREDIT_BYTES

    def received(self, frame: Frame) -> None:
        if frame.type is FrameType.SIGNAL and load(frame.payload)["signal"] == 10:
            self.session.write(encode(credit(self.stream, self.unread)))
            self.unread = 0
        else:
            super().received(frame)


class Cheat(Process):
    """Writes beyond its credit."""

    def start(self) -> None:
        for _ in range(CREDIT_BYTES // 65_536 + 1):
            self.session.send(FrameType.STDOUT, self.stream, bytes(65_536))


PROCESSES: dict[str, type[Process]] = {
    "sleep": Process,
    "cat": Cat,
    "say": Say,
    "miser": Miser,
    "cheat": Cheat,
}
