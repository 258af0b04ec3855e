"""The process behind a fake VMM: the guest, its agent socket and a monitor, in one loop without threads.

It starts in some 40 ms because it imports nothing but what is here. Its monitor takes one client at a
time, as QEMU's does, and a line of JSON for each command; its agent socket likewise. While it is paused, or
waits for a capture, the guest hears nothing.
"""

import json
import mmap
import os
import selectors
import socket
import struct
import sys
from pathlib import Path
from typing import Any, Final

from ramet.vmm.fake.disk import draw_together
from ramet.vmm.fake.guest import Guest, GuestEnded, HungUp, new_memory

DEVICES_FORMAT: Final = "ramet-fake-1"
_LENGTH: Final = struct.Struct(">I")
_READ_BYTES: Final = 65_536


def pack_memory(content: dict[str, Any]) -> bytes:
    """Return the guest's memory as the bytes a capture holds."""
    text = json.dumps(content).encode()
    return _LENGTH.pack(len(text)) + text


def unpack_memory(data: mmap.mmap) -> dict[str, Any]:
    """Return the guest's memory from a capture."""
    (length,) = _LENGTH.unpack_from(data)
    content: dict[str, Any] = json.loads(data[_LENGTH.size : _LENGTH.size + length])
    return content


class FakeVmm:
    """The process. `options` come from the driver, as JSON in the command line."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._folder = Path(options["folder"])
        self._selector = selectors.DefaultSelector()
        self._listeners = {name: socket.socket(fileno=options[f"{name}_fd"]) for name in ("monitor", "agent")}
        self._peers: dict[str, socket.socket] = {}
        self._received = b""
        self._prepared: set[Path] = set()
        self._memory: mmap.mmap | None = None
        if options["memory_fd"] is not None:
            self._memory = mmap.mmap(options["memory_fd"], 0, mmap.MAP_PRIVATE)
            if options["changes"] is not None:
                over = Path(options["changes"]).read_bytes()
                for offset, length in options["runs"]:
                    self._memory[offset : offset + length] = over[offset : offset + length]
        layers = [Path(layer) for layer in options["layers"]]
        self._guest = Guest(new_memory(), layers, self._print)
        self._paused = self._memory is not None
        self._balloon_bytes = 0

    def run(self) -> None:
        """Serve until the guest ends."""
        self._listen("monitor")
        try:
            if not self._paused:
                config = (self._folder / "config.img").read_bytes()
                (length,) = _LENGTH.unpack_from(config, 8)
                self._guest.boot(json.loads(config[12 : 12 + length]))
                self._listen("agent")
            while True:
                for key, _ in self._selector.select():
                    # What was served before it in this round may have closed it.
                    if self._selector.get_map().get(key.fileobj) == key:
                        key.data()
        except GuestEnded as end:
            if end.reason is None:
                os._exit(134)
            self._tell({"event": "SHUTDOWN", "reason": end.reason})

    # Sockets: of each kind a listener, or one peer that is being served.

    def _listen(self, name: str) -> None:
        if name == "monitor" or not self._paused:
            self._selector.register(self._listeners[name], selectors.EVENT_READ, lambda: self._accept(name))

    def _accept(self, name: str) -> None:
        peer, _ = self._listeners[name].accept()
        self._peers[name] = peer
        self._selector.unregister(self._listeners[name])
        if name == "agent":
            self._guest.connect(lambda data: self._send(peer, data))
            self._selector.register(peer, selectors.EVENT_READ, self._serve_agent)
        else:
            self._received = b""
            self._selector.register(peer, selectors.EVENT_READ, self._serve_monitor)

    def _drop(self, name: str) -> None:
        peer = self._peers.pop(name)
        self._selector.unregister(peer)
        peer.close()
        self._listen(name)

    def _serve_agent(self) -> None:
        peer = self._peers["agent"]
        try:
            data = peer.recv(_READ_BYTES)
            if data:
                self._guest.receive(data)
                return
        except (ConnectionError, HungUp):
            pass  # As good as an end: dropped below.
        self._guest.hang_up()
        self._drop("agent")

    def _serve_monitor(self) -> None:
        peer = self._peers["monitor"]
        try:
            data = peer.recv(_READ_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            self._drop("monitor")
            return
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            command = json.loads(line)
            try:
                answer = {"return": getattr(self, f"do_{command.pop('do')}")(**command)}
            except (OSError, ValueError, LookupError) as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            self._tell(answer)

    def _tell(self, message: dict[str, Any]) -> None:
        if "monitor" in self._peers:
            self._send(self._peers["monitor"], json.dumps(message).encode() + b"\n")

    def _send(self, peer: socket.socket, data: bytes) -> None:
        try:
            peer.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return  # The next read tells that it is gone.

    def _print(self, line: str) -> None:
        with (self._folder / "console.log").open("a") as console:
            console.write(line + "\n")

    # Commands of the monitor

    def do_pause(self) -> None:
        """Stand still."""
        if not self._paused:
            self._paused = True
            self._selector.unregister(self._peers.get("agent", self._listeners["agent"]))

    def do_resume(self) -> None:
        """Run."""
        if self._paused:
            self._paused = False
            if "agent" in self._peers:
                self._selector.register(self._peers["agent"], selectors.EVENT_READ, self._serve_agent)
            else:
                self._listen("agent")

    def do_query(self) -> dict[str, Any]:
        """Tell everything that can be seen from outside."""
        return {
            "paused": self._paused,
            "top": str(self._guest.layers[0]),
            "prepared": [str(layer) for layer in self._prepared],
            "memory": self._guest.memory,
            "balloon_bytes": self._balloon_bytes,
            "disk_io_bytes_per_s": self._options["disk_io_bytes_per_s"],
        }

    def do_prepare_disk(self, layer: str) -> None:
        """Open a layer, to be used later."""
        with Path(layer).open("rb"):
            self._prepared.add(Path(layer))

    def do_forget_disk(self, layer: str) -> None:
        """Close a prepared layer."""
        if Path(layer) not in self._prepared:
            raise ValueError(f"{layer} is not prepared, or in use")
        self._prepared.remove(Path(layer))

    def do_switch_disk(self, layer: str) -> None:
        """Write to the prepared layer from now on."""
        if not self._paused or Path(layer) not in self._prepared:
            raise ValueError("switched without being paused and prepared")
        self._guest.layers = [Path(layer), *self._guest.layers]
        self._prepared.remove(Path(layer))

    def do_collapse_disk(self, base: str) -> None:
        """Draw the chain together."""
        self._guest.layers = draw_together(self._guest.layers, Path(base))

    def do_set_balloon(self, balloon_bytes: int) -> None:
        """Have the guest give so much back; it has nothing to spare, and does not."""
        self._balloon_bytes = balloon_bytes

    def do_load(self, devices: str) -> None:
        """Take a capture and run. What cannot be loaded ends the process."""
        try:
            found = json.loads(Path(devices).read_bytes())
            if found["format"] != DEVICES_FORMAT:
                raise ValueError(f"devices of format {found['format']}")
            assert self._memory is not None, "not started to wait"
            self._guest.memory = unpack_memory(self._memory)
        except (ValueError, KeyError, TypeError, struct.error) as error:
            print(f"the capture cannot be loaded: {error}", file=sys.stderr, flush=True)
            sys.exit(1)
        self.do_resume()


def main() -> None:
    """Run the process with the options in the last argument."""
    FakeVmm(json.loads(sys.argv[-1])).run()
