"""Commands in a guest, as the fleet's callers see them."""

from collections.abc import AsyncIterator, Callable

from ramet.effects.site import Rig
from ramet.guest.exec import Exec, Output, open_exec
from ramet.instance.fleet_types import ExecCommand, ExecEnd, WindowSize


class GuestExec:
    """An `ExecSession` over the channel of one guest; `on_close` is called once."""

    def __init__(self, process: Exec, on_close: Callable[[], None]) -> None:
        self._process, self._on_close = process, on_close
        self._is_closed = False

    async def write(self, data: bytes) -> None:
        await self._process.write(data)

    async def close_stdin(self) -> None:
        self._process.write_eof()

    async def send_signal(self, number: int) -> None:
        self._process.signal(number)

    async def resize(self, size: WindowSize) -> None:
        await self._process.resize(size.rows, size.cols)

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        async for which, chunk in self._process.output():
            yield (1 if which is Output.STDOUT else 2), chunk

    async def wait(self) -> ExecEnd:
        status = await self._process.wait()
        return ExecEnd(status.code, status.signal, status.timed_out)

    async def aclose(self) -> None:
        self._process.close()
        if not self._is_closed:
            self._is_closed = True
            self._on_close()


async def start_exec(rig: Rig, command: ExecCommand, on_close: Callable[[], None]) -> GuestExec:
    """Start a command in the guest; `on_close` is called once, when the session is closed.

    Raises:
        Invalid: it cannot be run like that.
        Broken: the guest does not answer.
    """
    channel = await rig.channel()
    process = await open_exec(
        channel,
        command.argv,
        env=command.env,
        cwd=command.cwd,
        user=command.user,
        timeout_s=command.timeout_s,
        stdin=command.has_stdin,
        tty=None if command.tty is None else (command.tty.rows, command.tty.cols),
    )
    return GuestExec(process, on_close)
