"""Telling the service manager how we are: sd_notify(3), one datagram each.

The address is taken out of the environment at the first word, so that no VMM can speak for us.
"""

import os
import socket

from ramet.core.errors import Broken


class ServiceSilent(Broken):
    """The service manager that started us does not listen."""

    code = "service_manager_silent"


class ServiceNotice:
    """Says to systemd, if it waits for it, that we are ready, or about to stop.

    Args:
        address: of the manager's socket; a leading "@" means the abstract namespace. None: nobody listens.
    """

    def __init__(self, address: str | None) -> None:
        self._address = address

    @classmethod
    def from_environment(cls) -> "ServiceNotice":
        """Take the address that systemd left, and leave none to the processes we start."""
        return cls(os.environ.pop("NOTIFY_SOCKET", None))

    def say(self, text: str) -> None:
        """Send lines such as "READY=1" or "STOPPING=1"; nothing happens where nobody listens.

        Raises:
            ServiceSilent: they could not be sent.
        """
        if self._address is None:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as outlet:
                outlet.sendto(text.encode(), address)
        except OSError as error:
            raise ServiceSilent(f"the service manager cannot be told {text}: {error.strerror}") from error
