"""The smallest guest that speaks the guest protocol: what it knows is one dictionary, its "memory".

So a capture carries all of it to a child, frozen or not, with whatever was armed to go wrong in it. Its
commands are a handful of words (`COMMANDS`); it has no processes, and time does not pass in it. Its files are
on its disk (`ramet.vmm.fake.tree`).
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ramet.vmm.fake import tree
from ramet.vmm.fake.disk import read_file, write_file
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

AGENT_VERSION: Final = "0.1.0"
_CHUNK_BYTES: Final = 65_536


class GuestEnded(Exception):
    """The guest is over: `reason` as the VMM tells it, None where the VMM dies with it."""

    def __init__(self, reason: str | None) -> None:
        super().__init__(reason)
        self.reason = reason


class HungUp(Exception):
    """The guest drops its connection."""


def new_memory() -> dict[str, Any]:
    """Return the memory of a guest that has just been powered on."""
    return {
        "state": "starting",
        "boot_id": os.urandom(8).hex(),
        "variables": {},
        "hostname": "",
        "machine_id": "",
        "mac": None,
        "ip": None,
        "faults": {},
        "identified": 0,
    }


class Process:
    """One exec: reads when told to, writes within its credit.

    `tty`: rows and columns of its terminal. `take_all`: what becomes of its stdin once that has ended.
    """

    def __init__(
        self,
        *,
        echoes: bool = False,
        tty: tuple[int, int] | None = None,
        take_all: Callable[[bytes], None] | None = None,
    ) -> None:
        self.echoes, self.tty, self.take_all = echoes, tty, take_all
        self.taken = bytearray()
        self.tells_size = False
        self.credit_bytes = CREDIT_BYTES
        self.pending: list[tuple[FrameType, bytes]] = []
        self.exit: dict[str, Any] | None = None


class Guest:
    """One guest and its one connection.

    Args:
        memory: from `new_memory`, or that of a parent.
        layers: the files of its disk, topmost first; the VMM may replace the list.
        console: is given each line that the guest prints for the host.
    """

    def __init__(self, memory: dict[str, Any], layers: list[Path], console: Callable[[str], None]) -> None:
        self.memory, self.layers, self._console = memory, layers, console
        self._send: Callable[[bytes], None] = lambda data: None
        self.hang_up()

    # Power

    def boot(self, config: dict[str, Any]) -> None:
        """Start the workload that the config disk names.

        Raises:
            GuestEnded: it was `exit CODE`, and has ended.
        """
        self._take_identity(config)
        if config["argv"][0] == "exit":
            self._end_workload(int(config["argv"][1]), None)
        self.memory["state"] = "running"
        self._console("RAMET-GUEST ready")

    # Connection

    def connect(self, send: Callable[[bytes], None]) -> None:
        """Begin a connection; `send` takes what goes to the host."""
        self.hang_up()
        self._send = send

    def hang_up(self) -> None:
        """Forget the connection."""
        self._parser = FrameParser(Direction.HOST_TO_GUEST)
        self._processes: dict[int, Process] = {}
        self._send = lambda data: None

    def receive(self, data: bytes) -> None:
        """Take bytes of the host.

        Raises:
            GuestEnded, HungUp
        """
        for event in self._parser.feed(data):
            if isinstance(event, Reset):
                self._processes.clear()
            elif not isinstance(event, Violation):
                self._take(event)

    def _take(self, frame: Frame) -> None:
        match frame.type:
            case FrameType.HELLO:
                if self._is_faulty(0, "hello"):
                    return
                ack = {
                    "version": 1,
                    "nonce": json.loads(frame.payload)["nonce"],
                    "agent": AGENT_VERSION,
                    "workload": self._workload(),
                }
                self._put(FrameType.HELLO_ACK, 0, ack)
            case FrameType.REQUEST:
                request = json.loads(frame.payload)
                if not self._is_faulty(frame.stream, request["op"]):
                    self._answer(frame.stream, request)
            case _ if frame.stream in self._processes:
                self._feed(frame.stream, self._processes[frame.stream], frame)

    def _is_faulty(self, stream: int, op: str) -> bool:
        """Do what `fault` armed for `op`, if anything."""
        armed = self.memory["faults"].get(op)
        fault = armed.pop() if armed else None
        match fault:
            case "refuse":
                error = {"code": "internal", "message": f"{op} was armed to fail"}
                self._put(FrameType.RESPONSE, stream, {"error": error})
            case "hangup":
                raise HungUp
        return fault is not None

    def _answer(self, stream: int, request: dict[str, Any]) -> None:
        match request["op"]:
            case "health":
                self._ok(stream, workload=self._workload(), uptime_s=1.0)
            case "sync":
                self._ok(stream)
            case "freeze":
                self.memory["state"] = "frozen"
                self._ok(stream, frozen=True)
            case "thaw":
                self.memory["state"] = "running"
                self._ok(stream)
            case "identify":
                ran = self.memory["state"] != "frozen"
                self._take_identity(request)
                self.memory["state"] = "running"
                self.memory["identified"] += 1
                names = ("mac", "ip", "hostname")
                self._ok(stream, ran_before_identity=ran, **{name: self.memory[name] for name in names})
            case "exec":
                self._exec(stream, request["argv"], request.get("tty"))
            case "resize":
                self._resize(stream, request)
            case "stat" | "read_archive" | "write_archive":
                self._files(stream, request)
            case "shutdown":
                self._ok(stream)
                self._end_workload(None, 15)
            case op:
                error = {"code": "unknown_op", "message": op}
                self._put(FrameType.RESPONSE, stream, {"error": error})

    # Commands

    def _exec(self, stream: int, argv: list[str], tty: dict[str, int] | None) -> None:
        command = COMMANDS.get(argv[0])
        if command is None:
            error = {"code": "command_not_found", "message": argv[0]}
            self._put(FrameType.RESPONSE, stream, {"error": error})
            return
        self._ok(stream, pid=300 + stream, **({"tty": True} if tty else {}))
        size = (tty["rows"], tty["cols"]) if tty else None
        process = self._processes[stream] = Process(echoes=argv[0] == "cat", tty=size)
        process.tells_size = argv[0] == "size"
        self._tell_size(process)
        result = command(self, *argv[1:])
        if result is not None:
            output, code = result
            process.pending.append((FrameType.STDOUT, output))
            process.exit = {"code": code, "signal": None, "timed_out": False}
        self._flush(stream, process)

    def _resize(self, stream: int, request: dict[str, Any]) -> None:
        process = self._processes.get(request["exec"])
        if process is None:
            error = {"code": "no_such_stream", "message": "that exec has ended"}
            self._put(FrameType.RESPONSE, stream, {"error": error})
            return
        process.tty = request["rows"], request["cols"]
        self._ok(stream)
        self._tell_size(process)
        self._flush(request["exec"], process)

    def _tell_size(self, process: Process) -> None:
        if process.tells_size and process.tty:
            process.pending.append((FrameType.STDOUT, b"%d %d\r\n" % process.tty))

    def _files(self, stream: int, request: dict[str, Any]) -> None:
        """Do what is asked of the files; a refusal before anything was done is the answer itself."""
        path, output = request["path"], b""
        process = Process()
        try:
            match request["op"]:
                case "stat":
                    found = tree.stat(self.layers, path, follow_links=request["follow_links"])
                    output = json.dumps(found).encode()
                case "read_archive":
                    output = tree.read_archive(self.layers, path, follow_links=request["follow_links"])
                case _:
                    tree.check_folder(self.layers, path)
                    process.take_all = lambda archive: tree.write_archive(
                        self.layers, path, archive, keep_owner=request["keep_owner"]
                    )
        except tree.TreeError as error:
            refusal = {"code": error.code, "message": error.message}
            self._put(FrameType.RESPONSE, stream, {"error": refusal})
            return
        self._ok(stream, pid=300 + stream)
        self._processes[stream] = process
        process.pending.append((FrameType.STDOUT, output))
        if process.take_all is None:
            process.exit = {"code": 0, "signal": None, "timed_out": False}
        self._flush(stream, process)

    def _end_input(self, process: Process) -> None:
        process.exit = {"code": 0, "signal": None, "timed_out": False}
        if process.take_all is not None:
            try:
                process.take_all(bytes(process.taken))
            except tree.TreeError as error:
                told = {"code": error.code, "message": error.message}
                process.pending.append((FrameType.STDERR, json.dumps(told).encode()))
                process.exit["code"] = 1

    def _feed(self, stream: int, process: Process, frame: Frame) -> None:
        match frame.type:
            case FrameType.STDIN:
                if process.take_all is not None:
                    process.taken += frame.payload
                elif process.tty and b"\x03" in frame.payload:
                    process.exit = {"code": None, "signal": 2, "timed_out": False}
                elif process.echoes:
                    process.pending.append((FrameType.STDOUT, frame.payload))
                self._send(encode(credit(stream, len(frame.payload))))
            case FrameType.STDIN_EOF if process.echoes or process.tty or process.take_all:
                self._end_input(process)
            case FrameType.CREDIT:
                process.credit_bytes += decode_credit(frame.payload)
            case FrameType.SIGNAL:
                number = json.loads(frame.payload)["signal"]
                process.exit = {"code": None, "signal": number, "timed_out": False}
        self._flush(stream, process)

    def _flush(self, stream: int, process: Process) -> None:
        while process.pending and process.credit_bytes:
            kind, data = process.pending.pop(0)
            size = min(len(data), process.credit_bytes, _CHUNK_BYTES)
            process.credit_bytes -= size
            self._send(encode(Frame(kind, stream, data[:size])))
            if data[size:]:
                process.pending.insert(0, (kind, data[size:]))
        if process.exit is not None and not process.pending:
            self._put(FrameType.EXIT, stream, process.exit)
            del self._processes[stream]

    # Inside

    def _take_identity(self, identity: dict[str, Any]) -> None:
        network = identity["network"] or {}
        self.memory.update(
            hostname=identity["hostname"],
            machine_id=identity["machine_id"],
            mac=network.get("mac"),
            ip=network.get("ip"),
        )

    def _end_workload(self, code: int | None, signal: int | None) -> None:
        self._console("RAMET-GUEST exit " + json.dumps({"code": code, "signal": signal, "message": ""}))
        raise GuestEnded("guest-shutdown")

    def _workload(self) -> dict[str, Any]:
        return {"state": self.memory["state"], "pid": 100, "code": None, "signal": None, "message": ""}

    def _ok(self, stream: int, **members: object) -> None:
        self._put(FrameType.RESPONSE, stream, {"ok": members})

    def _put(self, kind: FrameType, stream: int, message: dict[str, Any]) -> None:
        self._send(encode(Frame(kind, stream, json.dumps(message).encode())))


Result = tuple[bytes, int] | None  # Output and exit code; None: it goes on.


def _set(guest: Guest, name: str, value: str) -> Result:
    guest.memory["variables"][name] = value
    return b"", 0


def _get(guest: Guest, name: str) -> Result:
    value = guest.memory["variables"].get(name)
    return (b"", 1) if value is None else (value.encode(), 0)


def _write(guest: Guest, name: str, content: str) -> Result:
    write_file(guest.layers[0], name, content)
    return b"", 0


def _read(guest: Guest, name: str) -> Result:
    content = read_file(guest.layers, name)
    return (b"", 1) if content is None else (content.encode(), 0)


def _arm(guest: Guest, op: str, fault: str, count: str = "1") -> Result:
    guest.memory["faults"][op] = [fault] * int(count)
    return b"", 0


def _end(reason: str | None) -> Result:
    raise GuestEnded(reason)


COMMANDS: Final[dict[str, Callable[..., Result]]] = {
    "echo": lambda guest, *words: (" ".join(words).encode() + b"\n", 0),
    "cat": lambda guest: None,
    "sleep": lambda guest: None,
    "size": lambda guest: None,
    "exit": lambda guest, code: (b"", int(code)),
    "say": lambda guest, size_bytes: (b"x" * int(size_bytes), 0),
    "memory": lambda guest: (json.dumps(guest.memory).encode(), 0),
    "set": _set,
    "get": _get,
    "write": _write,
    "read": _read,
    "fault": _arm,  # fault OP refuse|silent|hangup [COUNT]: what the next (COUNT) OP, or hello, meet.
    "poweroff": lambda guest: _end("guest-shutdown"),
    "reset": lambda guest: _end("guest-reset"),
    "crash": lambda guest: _end(None),
}
"""The commands `exec` knows. cat echoes its stdin; sleep ends by a signal; crash kills the VMM.
size, on a terminal, tells its size and each new one; ^C and the end of input end what is on a terminal."""
