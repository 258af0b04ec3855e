"""Connecting to a port of the guest: a serial port's socket, or a vsock's (`ramet.wire.vsock`)."""

import asyncio
import os
import socket
from pathlib import Path
from typing import Final

from ramet.guest.errors import GuestUnreachable
from ramet.wire.vsock import AGENT_PORT, ANSWER_BYTES_MAX, SOCKET_SUFFIX

CONNECT_RETRY_S: Final = 0.02
"""A full backlog of a unix socket gives EAGAIN and no event when it has room again; of a guest's port nobody
tells that it is open."""
_SUN_PATH_BYTES: Final = 107  # sizeof(sockaddr_un.sun_path) less its final zero: unix(7).


async def dial(path: Path, port: int = AGENT_PORT) -> socket.socket:
    """Connect to the agent behind the unix socket `path`, whatever the length of that.

    Behind a vsock to whoever listens at `port`.

    Waits as long as the backlog is full or, behind a vsock, nobody listens in the guest.

    Raises:
        GuestUnreachable: nobody listens at the socket.
    """
    while True:
        client = await _connect(path)
        if path.suffix != SOCKET_SUFFIX:
            return client
        try:
            if await _ask_for_port(client, port):
                return client
        except OSError:
            pass  # Hung up on, as by one that nobody listens to: asked again.
        except BaseException:
            client.close()
            raise
        client.close()
        await asyncio.sleep(CONNECT_RETRY_S)


async def _connect(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    folder_fd = -1
    try:
        address = str(path)
        if len(os.fsencode(address)) > _SUN_PATH_BYTES:
            folder_fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            address = f"/proc/self/fd/{folder_fd}/{path.name}"
        while True:
            try:
                client.connect(address)  # On a unix socket this never waits: done, or EAGAIN.
                return client
            except BlockingIOError:
                await asyncio.sleep(CONNECT_RETRY_S)
    except BaseException as error:
        client.close()
        if not isinstance(error, OSError):
            raise
        raise GuestUnreachable(f"{path.name}: nobody listens: {error.strerror}") from error
    finally:
        if folder_fd >= 0:
            os.close(folder_fd)


async def _ask_for_port(client: socket.socket, port: int) -> bool:
    """Ask a vsock for a port; tell whether somebody listens there."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, b"CONNECT %d\n" % port)
    answer = b""
    while not answer.endswith(b"\n"):
        # Byte by byte: what comes after the line is the guest's.
        byte = await loop.sock_recv(client, 1)
        if not byte or len(answer) == ANSWER_BYTES_MAX:
            return False
        answer += byte
    return answer.startswith(b"OK ")
