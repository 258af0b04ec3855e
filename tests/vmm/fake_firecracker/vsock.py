"""The guest's vsock, and its unix socket on the host's side.

As in a real guest its agent serves one connection at a time, and who comes meanwhile is taken by the kernel
and waits. While the guest stands still nothing is taken from it.
"""

import selectors
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from ramet.vmm.fake.guest import Guest, HungUp
from ramet.wire.vsock import AGENT_PORT, OUTPUT_PORT

_READ_BYTES: Final = 65_536
_GREETING_BYTES_MAX: Final = 32
_AGENT_LINE: Final = b"CONNECT %d" % AGENT_PORT
_OUTPUT_LINE: Final = b"CONNECT %d" % OUTPUT_PORT


class Vsock:
    """The connections of one guest. `output` is what its workload wrote that nobody has fetched."""

    def __init__(self, selector: selectors.BaseSelector, guest: Callable[[], Guest]) -> None:
        self._selector, self._guest = selector, guest
        self._listener: socket.socket | None = None
        self._greetings: dict[socket.socket, bytes] = {}  # Of who has not said yet what he wants.
        self._agent: socket.socket | None = None
        self._queue: deque[socket.socket] = deque()
        self._readers: set[socket.socket] = set()
        self.output = b""

    def bind(self, path: str | None) -> None:
        """Listen at `path` from the first time on that there is one, when it is configured or loaded."""
        if self._listener is None and path is not None:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self._listener.listen(128)

    def set_running(self, is_running: bool) -> None:
        """Serve, or no longer, at the socket if there is one."""
        if self._listener is None:
            return
        served = [self._listener, *self._greetings, *self._readers, *([self._agent] if self._agent else [])]
        for each in served:
            if is_running:
                self._serve(each)
            else:
                self._selector.unregister(each)

    def reset(self) -> None:
        """End all connections of a guest that stands still, as a snapshot does; it is told of it."""
        if self._agent is not None:
            self._guest().hang_up()
        for peer in (*self._greetings, *self._readers, *self._queue, *([self._agent] if self._agent else [])):
            peer.close()
        self._greetings.clear()
        self._readers.clear()
        self._queue.clear()
        self._agent = None

    def _serve(self, each: socket.socket) -> None:
        serve = self._accept if each is self._listener else lambda: self._receive(each)
        self._selector.register(each, selectors.EVENT_READ, serve)

    def _accept(self) -> None:
        assert self._listener is not None
        peer, _ = self._listener.accept()
        self._greetings[peer] = b""
        self._serve(peer)

    def _receive(self, peer: socket.socket) -> None:
        try:
            data = peer.recv(_READ_BYTES)
            if data and self._take(peer, data):
                return
        except (ConnectionError, HungUp):
            pass  # As good as an end: dropped below.
        self._drop(peer)

    def _take(self, peer: socket.socket, data: bytes) -> bool:
        """Take what the host sent; false ends the connection."""
        if peer in self._greetings:
            line, newline, data = (self._greetings[peer] + data).partition(b"\n")
            self._greetings[peer] = line
            if not newline:
                return len(line) <= _GREETING_BYTES_MAX
            if line not in (_AGENT_LINE, _OUTPUT_LINE):
                return False  # The guest listens at no other port.
            del self._greetings[peer]
            peer.sendall(b"OK 1073741824\n")
            if line == _OUTPUT_LINE:
                self._readers.add(peer)
                peer.sendall(self.output)
                self.output = b""
                return True
            if self._agent is not None:
                assert not data, "nobody speaks before he is answered"
                self._selector.unregister(peer)
                self._queue.append(peer)
                return True
            self._enter(peer)
        if data and peer is self._agent:
            self._guest().receive(data)
        return True

    def _enter(self, peer: socket.socket) -> None:
        self._agent = peer
        self._guest().connect(lambda answer: self._send(peer, answer))

    def _send(self, peer: socket.socket, data: bytes) -> None:
        try:
            peer.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return  # The next read tells that it is gone.

    def _drop(self, peer: socket.socket) -> None:
        self._selector.unregister(peer)
        self._greetings.pop(peer, None)
        self._readers.discard(peer)
        peer.close()
        if peer is self._agent:
            self._guest().hang_up()
            self._agent = None
            if self._queue:
                following = self._queue.popleft()
                self._enter(following)
                self._serve(following)
