"""The one question we have for the ethtool interface: linux/ethtool.h."""

import ctypes
import fcntl
import socket
import struct
from typing import Final

SIOCETHTOOL: Final = 0x8946
ETHTOOL_GLINK: Final = 0x0A

_VALUE: Final = struct.Struct("=II")  # struct ethtool_value
_IFREQ: Final = struct.Struct("=16sQ16x")


def has_link(name: str) -> bool:
    """Tell whether an interface has a link, and have the kernel act on that first, if it has not yet.

    A change of an interface's link is acted on later, by a worker; since Linux 6.8 this question does that
    work at once. Takes RTNL.

    Raises:
        OSError: there is no such interface, or it has no answer.
    """
    value = ctypes.create_string_buffer(_VALUE.pack(ETHTOOL_GLINK, 0), _VALUE.size)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCETHTOOL, _IFREQ.pack(name.encode(), ctypes.addressof(value)))
    _, data = _VALUE.unpack(value.raw)
    return bool(data)
