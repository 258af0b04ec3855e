"""Packet sockets: hearing what goes out of an interface, and sending whole frames out of it.

Out of a TAP means: to whoever reads it. A frame goes with a `virtio_net_hdr` of 10 bytes before it, which
tells of a checksum that is left to do.
"""

import socket
from collections.abc import Sequence
from typing import Final

from ramet.linux.bpf import Instruction, sock_fprog

FRAME_BYTES_MAX: Final = 10 + (64 << 10)  # The kernel leaves large segments whole.

# linux/if_packet.h, linux/if_ether.h, asm-generic/socket.h
SOL_PACKET: Final = 263
PACKET_VNET_HDR: Final = 15
ETH_P_ALL: Final = 3
SO_ATTACH_FILTER: Final = 26


def hear_interface(name: str, program: Sequence[Instruction]) -> socket.socket:
    """Return a non-blocking socket in which those frames of an interface queue that `program` keeps.

    What the interface drops after it took it is there, too.

    Raises:
        OSError: there is no such interface, EPERM without CAP_NET_RAW.
    """
    heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
    try:
        heard.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        with sock_fprog(program) as fprog:
            heard.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)
        heard.bind((name, ETH_P_ALL))  # Last: until here it hears nothing.
    except BaseException:
        heard.close()
        raise
    return heard


def read_frames(heard: socket.socket, count_max: int) -> list[bytes]:
    """Return what has queued, `count_max` frames at most.

    Raises:
        OSError: ENETDOWN, once, if the interface went down.
    """
    frames: list[bytes] = []
    while len(frames) < count_max:
        try:
            frames.append(heard.recv(FRAME_BYTES_MAX))
        except BlockingIOError:
            break
    return frames


def send_frames(name: str, frames: Sequence[bytes]) -> None:
    """Send frames as `read_frames` returns them out of the interface `name`.

    Raises:
        OSError: there is no such interface, or it is down.
    """
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sender.bind((name, 0))
        for frame in frames:
            sender.send(frame)
