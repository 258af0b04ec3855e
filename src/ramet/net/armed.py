"""The TAPs of sleepers, and who asks at them for a connection.

A packet socket on the TAP hears the first packets of connections (`ramet.net.syn`) and nothing else, so that
there is something to read is all that needs to be known. It is not read: they queue there, for the guest. The
reader is taken away with the first one, or the loop would be told again and again of what nobody takes.

The TAP itself is deaf until its guest has woken as who it is. A VMM reads its TAP from its start on, and not
before it has loaded its device does it know how the guest wants to have frames: QEMU 7.2 spoils what it read
before (it takes the header of 10 bytes off, and the guest takes 12 more). So whatever comes during a wake
waits in the socket as well, and is sent through the TAP when there is somebody to answer.
"""

import asyncio
import os
import socket
from collections.abc import Callable, Sequence
from typing import Final

from ramet.linux import tun
from ramet.linux.packet import hear_interface, read_frames, send_frames
from ramet.net.errors import NetworkFailed
from ramet.net.slots import Endpoint
from ramet.net.syn import Ignored, syn_filter
from ramet.net.taps import Tap

WAITING_COUNT_MAX: Final = 256
"""Who asked first; a socket of the kernel's default size holds about as many. The others ask again."""


class Armed:
    """A deaf TAP, and what asks at it for a connection. It takes the TAP over, but for its closing.

    `renew` begins it. What may block is to be called in a thread, and says so.
    """

    def __init__(self, endpoint: Endpoint, tap: Tap) -> None:
        self.tap = tap
        self.is_waiting = False
        """Whether nobody has asked yet."""
        self._address = endpoint.ip
        self._held_fd = os.dup(tap.fd)  # Those of the VMM and of `tap` are not ours to use when it has woken.
        self._heard: socket.socket | None = None
        self._loop = asyncio.get_running_loop()

    def renew(self, ignored: Ignored) -> None:
        """Listen anew, for those that are not `ignored`; whoever asked until now is forgotten. Blocks.

        Raises:
            NetworkFailed: the kernel refused.
        """
        assert not self.is_waiting, "stop() comes first"
        heard, self._heard = self._heard, None
        if heard is not None:
            heard.close()
        try:
            self._heard = hear_interface(self.tap.name, syn_filter(self._address, ignored))
        except OSError as error:
            raise NetworkFailed.because(f"hear who asks at {self.tap.name}", error) from error

    def wait(self, on_syn: Callable[[], None]) -> None:
        """Call `on_syn` once, when somebody has asked."""
        heard = self._heard
        assert heard is not None, "renew() comes first"

        def hear() -> None:
            self.stop()
            on_syn()

        self.is_waiting = True
        self._loop.add_reader(heard.fileno(), hear)

    def stop(self) -> None:
        """Have nobody be told any more. Those who ask queue as before. Idempotent."""
        if self.is_waiting and self._heard is not None:
            self._loop.remove_reader(self._heard.fileno())
        self.is_waiting = False

    def read(self) -> list[bytes]:
        """Return what those have sent who asked.

        Raises:
            NetworkFailed: the TAP is down, or no more.
        """
        assert self._heard is not None, "renew() comes first"
        try:
            return read_frames(self._heard, WAITING_COUNT_MAX)
        except OSError as error:
            raise NetworkFailed.because(f"read who asked at {self.tap.name}", error) from error

    def hand_over(self) -> None:
        """Have all come to the TAP from now on, beginning with what has queued, and close. Blocks.

        Raises:
            NetworkFailed: the kernel refused.
        """
        try:
            try:
                tun.detach_filter(self._held_fd)
            except OSError as error:
                raise NetworkFailed.because(f"open {self.tap.name} for all frames", error) from error
            # What comes from here on comes twice, at worst: the first packet of a connection may.
            send(self.tap.name, self.read())
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the TAP, and forget whoever asked. Blocks. Idempotent."""
        self.stop()
        heard, self._heard = self._heard, None
        if heard is not None:
            heard.close()  # The kernel waits until nobody hands it frames any more.
        fd, self._held_fd = self._held_fd, -1
        if fd >= 0:
            os.close(fd)


def send(name: str, frames: Sequence[bytes]) -> None:
    """Send `frames` to whoever reads the TAP `name`.

    Raises:
        NetworkFailed: the kernel refused.
    """
    try:
        send_frames(name, frames)
    except OSError as error:
        raise NetworkFailed.because(f"send who asked at {name} on", error) from error
