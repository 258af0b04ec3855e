"""QEMU's monitor: commands with a deadline, and the events we act on.

A thin wrapper of `qemu.qmp`, so that the rest of the driver sees one error, `VmmFailed`, and never waits
for ever: QEMU's monitor takes one client at a time and answers a second one not at all.
"""

import asyncio
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import anyio
from qemu.qmp import ExecInterruptedError, QMPClient, QMPError, Runstate
from qemu.qmp.events import EventListener
from qemu.qmp.message import Message

from ramet.vmm.port import VmmFailed, VmmSilent

COMMAND_TIMEOUT_S: Final = 60.0
LAST_WORDS_TIMEOUT_S: Final = 1.0


class _QuietClient(QMPClient):
    """A client that does not write every message out, indented, for a debug log that nobody reads.

    With `query-block` that is milliseconds, within the pause of a capture (qemu.qmp 0.0.6).
    """

    def _cb_outbound(self, msg: Message) -> Message:
        return msg

    def _cb_inbound(self, msg: Message) -> Message:
        return msg


class Monitor:
    """One QMP session.

    `shutdown_reason` is the reason of the last SHUTDOWN event ("guest-shutdown", "guest-reset", ...), if any;
    `is_starved`: a write failed for want of room, and the guest has stood still since.
    """

    def __init__(self, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._client = _QuietClient()
        self._running = asyncio.Event()
        self._jobs: dict[str, asyncio.Future[str]] = {}
        self.is_starved = False
        self._when_starved: list[Callable[[], None]] = []
        self._disconnecting = asyncio.Lock()  # The client can be disconnected by one task at a time.
        self.shutdown_reason: str | None = None
        names = ("SHUTDOWN", "RESUME", "BLOCK_JOB_COMPLETED", "BLOCK_IO_ERROR")
        self._listener = EventListener(names=names, event_filter=self._see_event)
        self._client.register_listener(self._listener)

    async def connect(self, path: Path, timeout_s: float) -> None:
        """Connect to the monitor behind the unix socket `path`.

        Raises:
            VmmSilent: no greeting came in time: it hangs, or another client is being served.
            VmmFailed: nobody is there.
        """
        peer = socket.socket(socket.AF_UNIX)
        try:
            peer.setblocking(False)
            peer.connect(str(path))  # A unix socket connects at once or not at all.
            async with asyncio.timeout(timeout_s):
                await self._client.connect(peer)
        except (TimeoutError, BlockingIOError) as error:  # Blocking: nobody has accepted those before us.
            peer.close()
            raise VmmSilent(f"the VMM's monitor did not answer within {timeout_s:g} s") from error
        except (QMPError, OSError) as error:
            peer.close()
            raise VmmFailed(f"the VMM's monitor cannot be reached: {error}") from error

    def version(self) -> str:
        """Return the version of the QEMU that is connected, which may be older than the one installed."""
        greeting = self._client.greeting
        assert greeting is not None, "connect() comes first"
        number = greeting.QMP.version["qemu"]
        assert isinstance(number, dict)
        return f"{number['major']}.{number['minor']}.{number['micro']}"

    async def execute(self, command: str, **arguments: object) -> object:
        """Run a command; underscores in argument names stand for hyphens.

        Raises:
            VmmSilent: the VMM did not answer in time.
            VmmFailed: it was refused, or the VMM ended.
        """
        return await self.execute_with(command, {k.replace("_", "-"): v for k, v in arguments.items()})

    async def execute_with(self, command: str, arguments: Mapping[str, object]) -> object:
        """Run a command with `arguments` named as QEMU names them; otherwise as `execute`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._client.execute(command, arguments or None)
        except ExecInterruptedError as error:
            raise VmmFailed(f"the VMM ended during {command}") from error
        except TimeoutError as error:
            raise VmmSilent(f"the VMM did not answer {command} within {self._timeout_s:g} s") from error
        except QMPError as error:
            raise VmmFailed(f"the VMM refused {command}: {error}") from error

    async def wait_resumed(self) -> None:
        """Return when the guest runs, as told by an event since connecting, or when that was given up."""
        await self._running.wait()

    def give_up(self) -> None:
        """Have nobody wait for the guest any more: the VMM is gone."""
        self._running.set()

    @contextmanager
    def when_starved(self, call: Callable[[], None]) -> Iterator[None]:
        """Inside, have `call` called whenever a write fails for want of room, which stops the guest."""
        self._when_starved.append(call)
        try:
            yield
        finally:
            self._when_starved.remove(call)

    async def run_block_job(self, name: str, command: str, **arguments: object) -> None:
        """Start a block job and return when it has completed.

        Raises:
            VmmFailed: it was refused, failed, or the VMM ended.
        """
        ended = self._jobs[name] = asyncio.get_running_loop().create_future()
        try:
            await self.execute_with(
                command, {"job-id": name, **{k.replace("_", "-"): v for k, v in arguments.items()}}
            )
            message = await self._unless_lost(command, ended)
        finally:
            del self._jobs[name]
        if message:
            raise VmmFailed(f"{command} failed: {message}")

    async def _unless_lost(self, command: str, answer: asyncio.Future[str]) -> str:
        async with anyio.create_task_group() as group:

            async def give_up_when_lost() -> None:
                await self._wait_lost()
                answer.cancel()

            group.start_soon(give_up_when_lost)
            await asyncio.wait([answer])
            group.cancel_scope.cancel()
        if answer.cancelled():
            raise VmmFailed(f"the VMM ended during {command}")
        return answer.result()

    async def _wait_lost(self) -> None:
        while self._client.runstate is Runstate.RUNNING:
            await self._client.runstate_changed()

    async def wait_ended(self) -> None:
        """Return when the other side, which is gone, has hung up and its last words have been read."""
        try:
            async with asyncio.timeout(LAST_WORDS_TIMEOUT_S):
                await self._wait_lost()
        except TimeoutError:
            pass  # Somebody else holds its socket; what it may have said is lost.
        await self.disconnect()

    async def disconnect(self) -> None:
        """End the session; the VMM goes on. Idempotent, and several may ask at once."""
        async with self._disconnecting:
            try:
                await self._client.disconnect()
            except (QMPError, OSError, EOFError):
                return  # The other side was gone first.

    def _see_event(self, event: Message) -> bool:
        # Called as each event arrives; False keeps it out of the listener's queue, which nobody reads.
        data = event.get("data", {})
        assert isinstance(data, dict)
        match event["event"]:
            case "SHUTDOWN":
                self.shutdown_reason = str(data.get("reason", ""))
            case "RESUME":
                self._running.set()
                self.is_starved = False
            case "BLOCK_IO_ERROR" if data.get("action") == "stop":
                self.is_starved = True
                for call in self._when_starved:
                    call()
            case "BLOCK_JOB_COMPLETED":
                waiter = self._jobs.get(str(data.get("device")))
                if waiter is not None and not waiter.done():
                    waiter.set_result(str(data.get("error", "")))
        return False
