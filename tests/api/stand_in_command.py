"""A command in a guest that is none."""

from collections.abc import AsyncIterator

import anyio

from ramet.core.errors import Broken
from ramet.instance.fleet_types import ExecCommand, ExecEnd, WindowSize


class GuestCommand:
    """One command; a name that is not among them is not found.

    echo, env, cat, fail TEXT CODE, big BYTES, hang [FOR-GOOD], and `shell`, which says the size of its
    terminal now and whenever it changes, echoes lines, ends with code 7 after the line "exit", and fails at
    the line "break".
    """

    def __init__(self, command: ExecCommand) -> None:
        self.command = command
        self.signals: list[int] = []
        self.sizes: list[WindowSize] = [command.tty] if command.tty is not None else []
        self.is_closed = False
        self._stdin: list[bytes] = []
        self._has_ended_stdin = not command.has_stdin
        self._changed = anyio.Event()
        self._end = ExecEnd(0, None, timed_out=False)

    def _change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def write(self, data: bytes) -> None:
        assert not self._has_ended_stdin, "stdin was not asked for, or has been closed"
        if self.command.argv[0] == "hang":
            await anyio.sleep_forever()
        self._stdin.append(data)
        self._change()

    async def close_stdin(self) -> None:
        self._has_ended_stdin = True
        self._change()

    async def send_signal(self, number: int) -> None:
        self.signals.append(number)
        self._change()

    async def resize(self, size: WindowSize) -> None:
        if self.command.tty is not None:
            self.sizes.append(size)
        self._change()

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        name, *args = self.command.argv
        match name:
            case "echo":
                yield 1, " ".join(args).encode() + b"\n"
            case "env":
                yield 1, "".join(f"{key}={value}\n" for key, value in self.command.env.items()).encode()
            case "fail":
                yield 1, b"before "
                yield 2, args[0].encode()
                self._end = ExecEnd(int(args[1]), None, timed_out=False)
            case "big":
                yield 1, b"x" * int(args[0])
            case "broken":
                yield 1, b"so far "
                raise Broken("the guest went away")
            case "cat":
                async for data in self._read_stdin():
                    yield 1, data
            case "hang":
                yield 1, b"hanging\n"
                while not self.signals:
                    await self._changed.wait()
                if args:
                    yield 1, f"got {self.signals[0]}\n".encode()
                    await anyio.sleep_forever()
                self._end = ExecEnd(None, self.signals[0], timed_out=False)
            case "shell":
                async for data in self._act_as_shell():
                    yield 1, data
                self._end = ExecEnd(7, None, timed_out=False)
            case _:
                yield 2, f"{name}: command not found\n".encode()
                self._end = ExecEnd(127, None, timed_out=False)

    async def _act_as_shell(self) -> AsyncIterator[bytes]:
        told, typed = 0, b""
        while True:
            for size in self.sizes[told:]:
                yield f"size {size.rows}x{size.cols}\r\n".encode()
            told = len(self.sizes)
            while self._stdin:
                typed += self._stdin.pop(0)
            *lines, typed = typed.replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                if line == b"exit":
                    return
                if line == b"exit when resized twice":
                    while len(self.sizes) < 3:  # The first is what it began with.
                        await self._changed.wait()
                    return
                if line == b"break":
                    raise Broken("the guest went away")
                yield b"said " + line.replace(b"\x03", b"^C") + b"\r\n"
            if self._has_ended_stdin:
                return
            await self._changed.wait()

    async def _read_stdin(self) -> AsyncIterator[bytes]:
        while True:
            while self._stdin:
                data = self._stdin.pop(0)
                if data == b"STOP":
                    return
                yield data
            if self._has_ended_stdin:
                return
            await self._changed.wait()

    async def wait(self) -> ExecEnd:
        return self._end

    async def aclose(self) -> None:
        self.is_closed = True
