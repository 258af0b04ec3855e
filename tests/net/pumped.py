"""A guest made of a namespace and a TAP of ours; threads carry frames between the two, as a VMM does.

Both TAPs pass large frames whole (GSO), as QEMU's do where the guest can, so that the carrying takes little.
"""

import fcntl
import os
import select
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from ramet.linux import tun
from ramet.net.slots import Endpoint
from ramet.net.taps import Tap
from tests.net.namespaces import Namespace

GATEWAY = "10.100.0.1"
TUNSETOFFLOAD = 0x400454D0  # linux/if_tun.h
TUN_F_CSUM, TUN_F_TSO4 = 1, 2
FRAME_BYTES_MAX = 1 << 17
CHUNK_BYTES = 1 << 16
TIMEOUT_S = 60.0


class PumpedGuest:
    """The namespace, with `eth0` configured as the agent configures a guest's. Pumps inside `with`."""

    def __init__(self, endpoint: Endpoint, tap: Tap, namespace: Namespace) -> None:
        self.endpoint, self.namespace = endpoint, namespace
        with namespace.entered():
            Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")  # As in a guest.
            self._own = tun.open_tap("eth0")
        self._tap = os.dup(tap.fd)
        for fd in (self._own, self._tap):
            fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
        namespace.ip(f"link set eth0 address {endpoint.mac} up")
        namespace.ip(f"addr add {endpoint.ip}/16 dev eth0")
        namespace.ip(f"route add default via {GATEWAY}")
        self._stopped, self._stop = os.pipe()
        self._pumps = [
            threading.Thread(target=self._pump, args=way)
            for way in ((self._own, self._tap), (self._tap, self._own))
        ]

    def __enter__(self) -> Self:
        for pump in self._pumps:
            pump.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._stop)
        for pump in self._pumps:
            pump.join()
        for fd in (self._own, self._tap, self._stopped):
            os.close(fd)

    def _pump(self, source: int, target: int) -> None:
        ready = select.poll()
        ready.register(source, select.POLLIN)
        ready.register(self._stopped, select.POLLIN | select.POLLHUP)
        while self._stopped not in [fd for fd, _ in ready.poll()]:
            os.write(target, os.read(source, FRAME_BYTES_MAX))


def transfer(sender: socket.socket, receiver: socket.socket, total_bytes: int) -> list[tuple[float, int]]:
    """Send over a connection and return (seconds since it began, bytes received until then), growing."""
    began = time.monotonic()

    def send() -> None:
        chunk, left = bytes(CHUNK_BYTES), total_bytes
        while left:
            left -= sender.send(chunk[:left])
        sender.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    steps, received = [], 0
    while data := receiver.recv(CHUNK_BYTES):
        received += len(data)
        steps.append((time.monotonic() - began, received))
    thread.join()
    assert received == total_bytes
    return steps


def connect(client: socket.socket, server: Namespace, address: str, port: int) -> socket.socket:
    """Connect `client` to a new listener at `address` in `server`; return the other end."""
    with server.socket(socket.SOCK_STREAM) as listener:
        listener.settimeout(TIMEOUT_S)
        client.settimeout(TIMEOUT_S)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for each in (listener, client):  # What most guests and hosts use, whatever this host does.
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        listener.bind((address, port))
        listener.listen()
        client.connect((address, port))
        accepted, _ = listener.accept()
    accepted.settimeout(TIMEOUT_S)
    return accepted
