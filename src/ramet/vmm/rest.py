"""A VMM's REST API over its unix socket.

Each request is a connection of its own: half a millisecond, and one that is cancelled leaves nothing behind
that the next could trip over.
"""

import asyncio
import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ramet.linux.inotify import watch_new_files
from ramet.linux.process import HeldProcess
from ramet.vmm.port import VmmFailed, VmmSilent

COMMAND_TIMEOUT_S: Final = 60.0
_ANSWER_BYTES_MAX: Final = 1 << 20
_LISTEN_RETRY_S: Final = 0.001
"""A socket is there a moment before anybody listens at it."""


class Refusal(VmmFailed):
    """The VMM answered that it will not."""


class Api:
    """The API behind the socket `name` in `folder`. Holds no connection."""

    def __init__(self, folder: Path, name: str, timeout_s: float) -> None:
        self._folder, self._name, self.timeout_s = folder, name, timeout_s

    async def wait_listening(self, process: HeldProcess, timeout_s: float) -> None:
        """Return when the API of `process`, which has just been started, can be reached.

        Raises:
            VmmSilent: it was not in time.
            VmmFailed: the process ended.
        """
        try:
            async with asyncio.timeout(timeout_s):
                with watch_new_files(self._folder) as files, process.when_exited(files.tell):
                    while not (self._folder / self._name).exists() and not process.is_exited:
                        await files.wait()
                while not process.is_exited:
                    try:
                        self._connect().close()
                        return
                    except ConnectionRefusedError:
                        await asyncio.sleep(_LISTEN_RETRY_S)
        except TimeoutError as late:
            raise VmmSilent(f"the VMM's API was not there within {timeout_s:g} s") from late
        except OSError as error:
            raise VmmFailed(f"the VMM's API cannot be reached: {error}") from error
        raise VmmFailed("the VMM ended at its start")

    async def get(self, path: str) -> dict[str, object]:
        """Ask for something. Errors are as of `put`."""
        content = await self._request("GET", path, None, self.timeout_s)
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise VmmFailed(f"the VMM's answer to GET {path} makes no sense")
        return answer

    async def get_text(self, path: str, name: str) -> str:
        """Ask for one member of an answer. Errors are as of `put`."""
        found = (await self.get(path)).get(name)
        if not isinstance(found, str):
            raise VmmFailed(f"the VMM's answer to GET {path} has no {name}")
        return found

    async def put(
        self,
        path: str,
        body: Mapping[str, object] | None,
        timeout_s: float | None = None,
        passed: Sequence[int] = (),
    ) -> None:
        """Have something be so. Descriptors `passed` are handed over with it, and stay ours as well.

        Raises:
            Refusal: the VMM refused it, and says why.
            VmmSilent: it did not answer in time.
            VmmFailed: it ended, or does not listen.
        """
        await self._request("PUT", path, body, timeout_s or self.timeout_s, passed)

    async def patch(self, path: str, body: Mapping[str, object]) -> None:
        """Change something. Errors are as of `put`."""
        await self._request("PATCH", path, body, self.timeout_s)

    async def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None,
        timeout_s: float,
        passed: Sequence[int] = (),
    ) -> bytes:
        what = f"{method} {path}"
        try:
            async with asyncio.timeout(timeout_s):
                status, answer = await self._exchange(method, path, body, passed)
        except (TimeoutError, BlockingIOError) as late:  # Blocking: nobody has accepted those before us.
            raise VmmSilent(f"the VMM did not answer {what} in time ({timeout_s:g} s)") from late
        except asyncio.IncompleteReadError as error:
            raise VmmFailed(f"the VMM ended during {what}") from error
        except (OSError, ValueError, asyncio.LimitOverrunError) as error:
            raise VmmFailed(f"the VMM cannot be asked {what}: {error}") from error
        if status >= 300:
            raise Refusal(f"the VMM refused {what}: {_fault(answer)}")
        return answer

    async def _exchange(
        self, method: str, path: str, body: Mapping[str, object] | None, passed: Sequence[int]
    ) -> tuple[int, bytes]:
        peer, request = self._connect(), _request_of(method, path, body)
        if passed:
            try:
                sent = socket.send_fds(peer, [request], passed)  # A new socket has room for some of it.
            except BaseException:
                peer.close()
                raise
            request = request[sent:]
        reader, writer = await asyncio.open_unix_connection(sock=peer, limit=_ANSWER_BYTES_MAX)
        try:
            writer.write(request)
            await writer.drain()
            start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
            lengths = [line.partition(":")[2] for line in lines if line.startswith("content-length:")]
            protocol, status, *_ = start.split()
            if not protocol.startswith("http/"):
                raise ValueError("it speaks no HTTP")
            length = int(lengths[0]) if lengths else 0
            if not 0 <= length <= _ANSWER_BYTES_MAX:
                raise ValueError(f"an answer of {length} bytes")
            return int(status), await reader.readexactly(length)
        finally:
            writer.close()

    def _connect(self) -> socket.socket:
        """Connect, whatever the length of the folder's path."""
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            folder_fd = os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                peer.connect(f"/proc/self/fd/{folder_fd}/{self._name}")  # At once, or EAGAIN.
            finally:
                os.close(folder_fd)
        except BaseException:
            peer.close()
            raise
        return peer


def _request_of(method: str, path: str, body: Mapping[str, object] | None) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
    if body is None:
        return f"{head}\r\n".encode()
    data = json.dumps(body).encode()
    head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


def _fault(answer: bytes) -> str:
    """Return the reason: a member of an object (Firecracker), or a list (Cloud Hypervisor)."""
    try:
        told = json.loads(answer)
        return ": ".join(map(str, told)) if isinstance(told, list) else str(told["fault_message"])
    except (ValueError, KeyError, TypeError):
        return answer.decode(errors="replace") or "without a reason"
