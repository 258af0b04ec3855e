"""Commands on terminals, with a real guest."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from ramet.instance.fleet_types import ExecCommand, ExecSession, WindowSize
from tests.vm.site import Children, Site

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

ANSWER_TIMEOUT_S = 60.0


class Terminal:
    """What somebody at a terminal sees and types."""

    def __init__(self, session: ExecSession) -> None:
        self.session = session
        self._output = session.output()
        self.seen = b""

    async def type(self, text: str) -> None:
        await self.session.write(text.encode())

    async def wait_seen(self, text: str) -> None:
        """Wait until `text` stands in what is new."""
        with anyio.fail_after(ANSWER_TIMEOUT_S):
            while text.encode() not in self.seen:
                which, data = await anext(self._output)
                assert which == 1
                self.seen += data
        self.seen = self.seen.partition(text.encode())[2]

    async def wait_end(self) -> int:
        with anyio.fail_after(ANSWER_TIMEOUT_S):
            async for _ in self._output:
                pass
            return (await self.session.wait()).exit_code


@asynccontextmanager
async def terminal(
    site: Site, name: str, *argv: str, size: tuple[int, int] = (24, 80)
) -> AsyncIterator[Terminal]:
    command = ExecCommand(argv, tty=WindowSize(*size))
    session = await site.fleet.open_exec(name, command)
    try:
        yield Terminal(session)
    finally:
        await session.aclose()


async def test_a_shell_on_a_terminal_follows_its_size(site: Site, source: str) -> None:
    async with terminal(site, source, "sh", size=(33, 101)) as shell:
        await shell.type("tty; stty size; echo term=$TERM\n")
        await shell.wait_seen("/dev/pts/")
        await shell.wait_seen("33 101")
        await shell.wait_seen("term=xterm")
        await shell.session.resize(WindowSize(50, 132))
        await shell.type("stty size\n")
        await shell.wait_seen("50 132")
        await shell.type("echo x >/dev/tty; exit 7\n")
        assert await shell.wait_end() == 7


async def test_a_program_is_told_of_another_size(site: Site, source: str) -> None:
    # Not in an interactive shell: busybox takes the signal for itself while it edits a line.
    script = "trap 'echo told; stty size; exit 6' WINCH; echo ready; while :; do sleep 0.1; done"
    async with terminal(site, source, "sh", "-c", script) as program:
        await program.wait_seen("ready")
        await program.session.resize(WindowSize(51, 133))
        await program.wait_seen("told")
        await program.wait_seen("51 133")
        assert await program.wait_end() == 6


async def test_control_c_interrupts_what_runs_in_the_foreground(site: Site, source: str) -> None:
    async with terminal(site, source, "sh") as shell:
        await shell.type("echo be''gin; sleep 1000; echo code=$?\n")
        await shell.wait_seen("begin")
        await site.wait_for(source, "pidof sleep >/dev/null")
        await shell.type("\x03")
        await shell.wait_seen("^C")
        await shell.wait_seen("# ")
        await shell.type("echo go''ne\n")
        await shell.wait_seen("gone")
        await shell.wait_seen("# ")
        await shell.type("\x04")
        await shell.wait_end()


async def test_closing_stdin_ends_a_shell_and_a_half_line(site: Site, source: str) -> None:
    async with terminal(site, source, "cat") as cat:
        await cat.type("no newline")
        await cat.session.close_stdin()
        assert await cat.wait_end() == 0
    async with terminal(site, source, "sh") as shell:
        await shell.wait_seen("# ")
        await shell.session.close_stdin()
        assert await shell.wait_end() == 0


async def test_a_terminal_that_is_closed_takes_its_session_along(site: Site, source: str) -> None:
    async with terminal(site, source, "sh", "-m") as shell:
        await shell.type("sleep 4321 & sleep 4322\n")
        await site.wait_for(source, "[ $(ps -o args | grep -c 'sleep 432[1]') = 1 ]")
    await site.wait_for(source, "! ps -o args | grep -q 'sleep 432[12]'")


async def test_a_command_that_does_not_exist_is_told_on_the_terminal(site: Site, source: str) -> None:
    async with terminal(site, source, "/no/such") as nothing:
        await nothing.wait_seen("command not found\r\n")
        assert await nothing.wait_end() == 127


async def test_a_fork_has_no_session_and_its_source_keeps_it(
    site: Site, source: str, children: Children
) -> None:
    async with terminal(site, source, "sh") as shell:
        await shell.type("x=kept; sleep 1234 &\n")
        await site.wait_for(source, "ps -o args | grep -q 'sleep 123[4]'")
        await children.fork(source, "twig")
        await site.wait_for("twig", "! ps -o args | grep -q 'sleep 123[4]'")
        async with terminal(site, "twig", "sh", size=(9, 9)) as own:
            await own.type("stty size; exit 3\n")
            await own.wait_seen("9 9")
            assert await own.wait_end() == 3
        await shell.type("echo $x; kill %1; exit 5\n")
        await shell.wait_seen("kept")
        assert await shell.wait_end() == 5
