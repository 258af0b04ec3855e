"""Fetching what a workload writes, from a VMM that does not write it to a file itself.

The guest has it at a port of its vsock and gives it to whoever connects. A snapshot ends the connection, and
so does a new daemon: it is made again, and what comes is appended to the same file. While nobody fetches, the
workload stands still when its pipe is full.
"""

import asyncio
import os
import socket
from pathlib import Path
from typing import Final

import anyio
import structlog
from anyio import to_thread

from ramet.effects.site import Rig
from ramet.guest.dial import dial
from ramet.guest.errors import GuestUnreachable
from ramet.linux.plain_file import open_plain
from ramet.wire.vsock import OUTPUT_PORT

OUTPUT_FILE: Final = "output.log"
RETRY_S: Final = 1.0
REST_S: Final = 0.1
_READ_BYTES: Final = 64 << 10

log = structlog.get_logger(__name__)


async def keep_output(rig: Rig, file: Path, gone: anyio.Event) -> None:
    """Append what the workload writes to `file`, until the VMM is `gone` and all has come. Never fails."""
    path = rig.vm.output_socket
    while path is not None:
        try:
            connection = await dial(path, OUTPUT_PORT)
        except GuestUnreachable:  # Nobody is behind its socket, or it is not there yet.
            with anyio.move_on_after(RETRY_S):
                await gone.wait()
                return
            continue
        try:
            await _append(connection, file)
        finally:
            connection.close()
        with anyio.move_on_after(REST_S):  # Somebody who takes each connection and ends it keeps nobody busy.
            await gone.wait()
            return


async def _append(connection: socket.socket, file: Path) -> None:
    """Append what comes until the other side hangs up."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            data = await loop.sock_recv(connection, _READ_BYTES)
        except OSError:
            return  # A reset: as good as the end.
        if not data:
            return
        while data:
            try:
                written = await to_thread.run_sync(_write, file, data)
            except FileNotFoundError:
                return  # Its instance is being deleted.
            except OSError as error:  # The disk is full: the workload waits, as on other hypervisors.
                log.warning("output_not_kept", file=str(file), error=str(error))
                await anyio.sleep(RETRY_S)
            else:
                data = data[written:]


def _write(file: Path, data: bytes) -> int:
    """Append some of `data`; returns how much. Opened each time, since `file` may go with its folder."""
    fd = open_plain(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)
