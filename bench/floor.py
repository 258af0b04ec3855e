"""The floor of a burst: bare VMM processes from a capture, and nothing of the platform around them.

What of a child can be made before its capture is made beforehand: its folder, its TAP on the bridge, its disk
layer. Then each is started by the driver's own command line, loads, and is sent the identity message that the
platform sends; its clock stops when its guest has acknowledged it. Threads and blocking sockets do it all.
"""

import ipaddress
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

from bench.recording_daemon import Record
from ramet.core.ids import InstanceId, mint_id
from ramet.disks.qcow2 import create_qcow2
from ramet.guest.identity import GuestIdentity
from ramet.linux import netlink, tun
from ramet.net.bridge import BridgeConfig, has_ipv6
from ramet.net.slots import mac_of
from ramet.vmm.port import DiskImage, Machine, Nic
from ramet.vmm.qemu.board import BOARDS
from ramet.vmm.qemu.command import Sockets, command_line
from ramet.wire.frames import Direction, Frame, FrameParser, FrameType, encode
from ramet.wire.messages import Hello, Network, Refusal, dump, load_response

OVERLAY_BYTES: Final = 1 << 30
ANSWER_TIMEOUT_S: Final = 60.0
MTU_BYTES: Final = 1500


@dataclass(slots=True)
class Child:
    """One bare VMM: prepared, then started, loaded and told who it is. `phases_ms` as the platform's."""

    index: int
    folder: Path
    machine: Machine
    identity: GuestIdentity
    process: subprocess.Popen[bytes] | None = None
    monitor: "Monitor | None" = None
    agent: socket.socket | None = None
    phases_ms: dict[str, float] = field(default_factory=dict)

    def start(self, record: Record) -> None:
        """Start the process and return when its monitor has greeted."""
        board = next(board for board in BOARDS if board.name == record.board)
        memory = os.open(record.memory, os.O_RDWR | os.O_CLOEXEC)
        listeners = [_listen(self.folder / name) for name in ("monitor.sock", "agent.sock")]
        assert self.machine.nic is not None
        sockets = Sockets(listeners[0].fileno(), listeners[1].fileno())
        passed = (sockets.monitor_fd, sockets.agent_fd, self.machine.nic.tap_fd, memory)
        argv = command_line(
            Path(record.program),
            board,
            self.machine,
            sockets,
            accelerator=record.accelerator,
            memory_path=f"/proc/self/fd/{memory}",
        )
        with (self.folder / "vmm.log").open("wb") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, pass_fds=passed
            )
        os.close(memory)
        for listener in listeners:
            listener.close()
        self.monitor = Monitor(self.folder / "monitor.sock")

    def wake(self, devices: str) -> None:
        """Load the capture and return when the guest has acknowledged its identity."""
        assert self.monitor is not None
        began = time.perf_counter()
        self.monitor.execute("migrate-incoming", uri=f"exec:cat {devices}")
        self.monitor.wait_event("RESUME")
        loaded = time.perf_counter()
        self.agent = _connect(self.folder / "agent.sock")  # Kept: a guest would notice its end.
        self._identify(self.agent)
        self.phases_ms["load"] = (loaded - began) * 1000
        self.phases_ms["identify"] = (time.perf_counter() - loaded) * 1000

    def _identify(self, agent: socket.socket) -> None:
        request = dump({"op": "identify", **self.identity.fresh().to_json()})
        hello = dump(Hello(secrets.token_hex(16), "kill").to_json())
        agent.sendall(encode(Frame(FrameType.HELLO, 0, hello)) + encode(Frame(FrameType.REQUEST, 1, request)))
        parser, is_acknowledged = FrameParser(Direction.GUEST_TO_HOST), False
        while True:
            data = agent.recv(1 << 16)
            if not data:
                raise OSError("the VMM hung up")
            for event in parser.feed(data):
                if not isinstance(event, Frame):
                    continue
                is_acknowledged = is_acknowledged or event.type is FrameType.HELLO_ACK
                if is_acknowledged and event.type is FrameType.RESPONSE and event.stream == 1:
                    answer = load_response(event.payload)
                    if isinstance(answer, Refusal):
                        raise OSError(answer.message)
                    assert answer["hostname"] == self.identity.hostname
                    return

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def end(self) -> None:
        """End the process and give back what it held."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        if self.monitor is not None:
            self.monitor.close()
        if self.agent is not None:
            self.agent.close()
        assert self.machine.nic is not None
        os.close(self.machine.nic.tap_fd)
        shutil.rmtree(self.folder)


class Floor:
    """Children of one capture, prepared. Leave it to end them all."""

    def __init__(self, work: Path, record: Record, count: int, bridge: BridgeConfig) -> None:
        self._record, self._folder = record, work / f"floor-{mint_id()}"
        self._bridge, self._bridge_index = bridge, netlink.interface_index(bridge.name)
        self.children: list[Child] = []
        self._folder.mkdir()
        for index in range(count):
            self.children.append(self._prepare(index))

    def __enter__(self) -> "Floor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for child in self.children:
            child.end()
        shutil.rmtree(self._folder)

    def start_ahead(self) -> None:
        """Start all VMMs now, outside the clock."""
        for child in self.children:
            child.start(self._record)

    def run(self, width: int) -> list[float]:
        """Start and wake all children; returns how long each took, in seconds from now.

        As with the platform, `width` of them start at a time, and `width` of those that have wake.
        """
        began = time.perf_counter()

        def start(child: Child) -> float:
            starting = time.perf_counter()
            if child.process is None:
                child.start(self._record)
            ended = time.perf_counter()
            child.phases_ms["vmm_start_wait"] = (starting - began) * 1000
            child.phases_ms["vmm_start"] = (ended - starting) * 1000
            return ended

        def wake(child: Child, started: Future[float]) -> float:
            waiting_since = started.result()
            child.phases_ms["confirm_wait"] = (time.perf_counter() - waiting_since) * 1000
            child.wake(self._record.devices)
            took_s = time.perf_counter() - began
            child.phases_ms["since_capture"] = took_s * 1000
            return took_s

        with ThreadPoolExecutor(width) as starters, ThreadPoolExecutor(width) as wakers:
            started = [starters.submit(start, child) for child in self.children]
            woken = [wakers.submit(wake, *pair) for pair in zip(self.children, started, strict=True)]
            return [future.result() for future in woken]

    def _prepare(self, index: int) -> Child:
        record, folder = self._record, self._folder / str(index)
        folder.mkdir()
        ip = ipaddress.IPv4Address(int(self._bridge.subnet.broadcast_address) - 1 - index)
        mac = mac_of(ip)
        frozen = Path(record.layers[0][0])
        layer = folder / f"{mint_id()}.qcow2"
        create_qcow2(layer, OVERLAY_BYTES, frozen, "qcow2")
        chain: list[tuple[Path, Literal["raw", "qcow2"]]] = [(layer, "qcow2")]
        chain += [(Path(path), "raw" if form == "raw" else "qcow2") for path, form in record.layers]
        machine = Machine(
            instance=InstanceId(mint_id()),
            folder=folder,
            vcpu_count=record.vcpu_count,
            memory_bytes=record.memory_bytes,
            kernel=Path(record.kernel),
            initramfs=Path(record.initramfs),
            root=Path(record.root),
            overlay=DiskImage(tuple(chain)),
            config=folder / "config.img",
            nic=Nic(mac, self._open_tap(f"floor{index}")),
        )
        shutil.copyfile(record.config, machine.config)
        gateway = self._bridge.gateway
        network = Network(mac, ip, gateway.network.prefixlen, gateway.ip, self._bridge.dns)
        return Child(index, folder, machine, GuestIdentity(f"floor-{index}", secrets.token_hex(16), network))

    def _open_tap(self, name: str) -> int:
        fd = tun.open_tap(name)
        with netlink.RouteSocket() as route:
            index = netlink.interface_index(name)
            ipv6 = has_ipv6()
            route.apply([netlink.enslave(index, self._bridge_index, mtu_bytes=MTU_BYTES, has_ipv6=ipv6)])
            route.apply([netlink.open_port(index, learning=False)])
        return fd


class Monitor:
    """A QMP session over a blocking socket."""

    def __init__(self, path: Path) -> None:
        self._socket = _connect(path)
        self._lines = self._socket.makefile("rb")
        self._events: list[str] = []
        self._read()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> None:
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            message = self._read()
            if "error" in message:
                raise OSError(message["error"]["desc"])
            if "return" in message:
                return

    def wait_event(self, name: str) -> None:
        while name not in self._events:
            self._read()

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def _read(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise OSError("the VMM ended")
        message: dict[str, Any] = json.loads(line)
        if "event" in message:
            self._events.append(message["event"])
        return message


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)
    return listener


def _connect(path: Path) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(ANSWER_TIMEOUT_S)
    peer.connect(str(path))
    return peer
