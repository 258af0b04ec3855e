"""TAP devices that live as long as somebody holds their descriptor, and no longer; or that outlive it.

A TAP is not persistent: the descriptor is passed on to the VMM, and the kernel removes the TAP when the last
holder closes it or dies. So no crash of ours can leave one behind. A VMM that opens its TAP itself, by name,
needs one that is there while nobody holds it: that is made persistent, and must be ended.
"""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Sequence
from typing import Final

from ramet.linux.bpf import SOCK_FPROG, Instruction, sock_fprog

NAME_BYTES_MAX: Final = 15  # IFNAMSIZ - 1

# linux/if_tun.h
TUNSETIFF: Final = 0x400454CA
TUNGETIFF: Final = 0x800454D2
TUNSETPERSIST: Final = 0x400454CB
TUNSETOWNER: Final = 0x400454CC
TUNATTACHFILTER: Final = 0x401054D5
TUNDETACHFILTER: Final = 0x401054D6
IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000
IFF_TUN_EXCL: Final = 0x8000

VNET_HDR_BYTES: Final = 10  # struct virtio_net_hdr, before every frame until TUNSETVNETHDRSZ says otherwise.

_IFREQ: Final = struct.Struct("=16sH22x")


def open_tap(name: str) -> int:
    """Create TAP `name`, down, and return its descriptor: non-blocking, not inherited by default.

    Frames on the descriptor begin with a `virtio_net_hdr`: device state saved by a VMM that used one
    loads only into a VMM that has one too. The name must be new: an existing, persistent TAP of that name
    is refused rather than joined. Blocks for the RTNL lock; call it in a thread.

    Raises:
        OSError: EBUSY if the name is taken, EPERM without CAP_NET_ADMIN, ENOENT without /dev/net/tun.
    """
    return _open(name, IFF_TUN_EXCL)


def persist(fd: int) -> None:
    """Have a TAP stay when its last descriptor is closed.

    Raises:
        OSError: the kernel refused.
    """
    fcntl.ioctl(fd, TUNSETPERSIST, 1)


def attach_filter(fd: int, program: Sequence[Instruction]) -> None:
    """Have only those frames come to a TAP that `program` keeps, in place of any filter it had.

    What is in its queue already stays there.

    Raises:
        OSError: the kernel refused.
    """
    with sock_fprog(program) as fprog:
        fcntl.ioctl(fd, TUNATTACHFILTER, fprog)


def detach_filter(fd: int) -> None:
    """Have all frames come to a TAP again. Harmless without a filter.

    Raises:
        OSError: the kernel refused.
    """
    fcntl.ioctl(fd, TUNDETACHFILTER, bytes(SOCK_FPROG.size))


def end_persistent(name: str) -> None:
    """Remove the persistent TAP `name`, which nobody holds. Blocks for some 20 ms; call it in a thread.

    Raises:
        OSError: EBUSY if somebody holds it.
    """
    fd = _open(name, 0)
    try:
        fcntl.ioctl(fd, TUNSETPERSIST, 0)
    finally:
        os.close(fd)


def _open(name: str, further_flags: int) -> int:
    encoded = name.encode()
    if not 0 < len(encoded) <= NAME_BYTES_MAX:
        raise OSError(errno.EINVAL, f"{name!r} cannot name an interface")
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | further_flags
        fcntl.ioctl(fd, TUNSETIFF, _IFREQ.pack(encoded, flags))
    except OSError as error:
        os.close(fd)
        if error.errno == errno.EINVAL:  # What the kernel says where a non-TAP has the name.
            raise OSError(errno.EBUSY, f"{name}: the name is taken") from error
        raise
    return fd


def give_tap(name: str, uid: int) -> None:
    """Let user `uid`, and nobody else without CAP_NET_ADMIN, attach to the persistent TAP `name`.

    Raises:
        OSError: there is none, or somebody is attached to it (EBUSY).
    """
    socket.if_nametoindex(name)  # Or the next would make one.
    fd = _open(name, 0)
    try:
        fcntl.ioctl(fd, TUNSETOWNER, uid)
    finally:
        os.close(fd)
