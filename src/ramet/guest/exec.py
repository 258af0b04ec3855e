"""A command started in a guest, on pipes or on a terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import anyio

from ramet.core.errors import RametError
from ramet.guest.channel import Channel
from ramet.guest.errors import (
    ExecInvalid,
    ExecOutputTooLong,
    GuestRefused,
    GuestTooOld,
    GuestUnreachable,
    NoSuchDirectory,
    NoSuchUser,
)
from ramet.guest.process import GuestProcess, Output
from ramet.wire.messages import ExecRequest, ExitStatus, Refusal, TerminalSize

__all__ = ("Completed", "Exec", "Output", "open_exec", "run")

EXEC_OUTPUT_BYTES_MAX: Final = 8 << 20
"""What `run` collects of stdout and stderr together before it kills the process."""
EXEC_GRACE_S: Final = 10.0
"""How much later than its own time limit the end of a process may reach us."""
COMMAND_NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126

_SHELL_CODES: Final = {
    "command_not_found": (COMMAND_NOT_FOUND, "command not found"),
    "not_executable": (NOT_EXECUTABLE, "cannot be executed"),
}


@dataclass(frozen=True, slots=True)
class Completed:
    """A process that has ended, and everything it wrote."""

    stdout: bytes
    stderr: bytes
    exit: ExitStatus


class Exec(GuestProcess):
    """One command in a guest, from `open_exec`."""

    op = "exec"

    def __init__(self, channel: Channel, request: ExecRequest) -> None:
        super().__init__(channel, stdin=request.stdin)
        self._request = request

    async def resize(self, rows: int, cols: int) -> None:
        """Change the size of its terminal, whose foreground processes get SIGWINCH.

        Without effect if it has no terminal, or has ended.
        """
        if self._request.tty is None or self.exit is not None:
            return
        try:
            await self._channel.request("resize", exec=self._stream, rows=rows, cols=cols)
        except GuestRefused as refused:
            if refused.guest_code != "no_such_stream":  # It has just ended.
                raise

    def _accepted(self, answer: Mapping[str, object]) -> RametError | None:
        if self._request.tty is not None and answer.get("tty") is not True:
            return GuestTooOld(
                "the program in the guest knows no terminals", remedy="start the instance again"
            )
        return None

    def _refused(self, refusal: Refusal) -> None:
        if refusal.code in _SHELL_CODES:
            code, text = _SHELL_CODES[refusal.code]
            line = f"ramet: {self._request.argv[0]}: {text}"
            end = "\n" if self._request.tty is None else "\r\n"
            which = Output.STDERR if self._request.tty is None else Output.STDOUT
            self._chunks.append((which, bytearray((line + end).encode("utf-8", "replace"))))
            self._finish(ExitStatus(code))
        elif refusal.code == "no_such_user":
            self._fail(NoSuchUser(f"the guest has no user {self._request.user!r}"))
        elif refusal.code == "no_such_directory":
            self._fail(NoSuchDirectory(f"the guest has no directory {self._request.cwd!r}"))
        else:
            self._fail(GuestRefused("exec", refusal.code, refusal.message))


async def open_exec(
    channel: Channel,
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    user: str | None = None,
    timeout_s: float = 0.0,
    stdin: bool = False,
    tty: tuple[int, int] | None = None,
) -> Exec:
    """Start a process in the guest and return when it runs.

    A command that does not exist or cannot be executed is an `Exec` that has ended, with code 127 or 126
    and a line on stderr, as a shell would have it.

    Args:
        env: added to the workload's.
        cwd: None means the workload's.
        user: as in an OCI image config; None means the workload's.
        timeout_s: after which the guest kills it; 0 means never.
        stdin: whether there will be any; without, it is closed from the beginning.
        tty: (rows, columns) of the terminal to run it on, whose output is all stdout; None: pipes.

    Raises:
        ExecInvalid, NoSuchUser, NoSuchDirectory: it cannot be run like that.
        GuestTooOld: it knows no terminals.
        GuestUnreachable, GuestMisbehaved, GuestRefused, StreamsExhausted: see `Channel`.
    """
    size = None if tty is None else TerminalSize(*tty)
    request = ExecRequest(tuple(argv), dict(env or {}), cwd, user, timeout_s, stdin, size)
    _check(request)
    process = Exec(channel, request)
    await process.start(request.to_json())
    return process


async def run(
    channel: Channel,
    argv: Sequence[str],
    *,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    user: str | None = None,
    timeout_s: float = 0.0,
    output_bytes_max: int = EXEC_OUTPUT_BYTES_MAX,
) -> Completed:
    """Run a process in the guest to its end and return everything it wrote. Cancelling kills it.

    Arguments and errors as `open_exec`, and
    Raises:
        ExecOutputTooLong: it wrote more than `output_bytes_max`; it has been killed.
    """
    written = {Output.STDOUT: bytearray(), Output.STDERR: bytearray()}
    written_bytes = 0
    limit_s = timeout_s + EXEC_GRACE_S if timeout_s else None
    try:
        with anyio.fail_after(limit_s):
            async with await open_exec(
                channel, argv, env=env, cwd=cwd, user=user, timeout_s=timeout_s, stdin=bool(stdin)
            ) as process:
                if stdin:
                    process.queue(stdin)
                    process.write_eof()
                async for which, chunk in process.output():
                    written_bytes += len(chunk)
                    if written_bytes > output_bytes_max:
                        raise ExecOutputTooLong(
                            f"the process wrote more than {output_bytes_max} bytes",
                            remedy="send its output to a file in the guest, or read it as a stream",
                        )
                    written[which] += chunk
                status = await process.wait()
    except TimeoutError as late:
        raise GuestUnreachable(f"the guest did not end the process within {limit_s:g} s") from late
    return Completed(bytes(written[Output.STDOUT]), bytes(written[Output.STDERR]), status)


def _check(request: ExecRequest) -> None:
    """Refuse what no process can be given.

    Raises:
        ExecInvalid: there is no command, or a text with a NUL or half a surrogate pair in it.
    """
    if not request.argv or not request.argv[0]:
        raise ExecInvalid("there is no command")
    for name in request.env:
        if not name or "=" in name:
            raise ExecInvalid(f"{name!r} cannot be the name of a variable")
    texts = (*request.argv, *request.env, *request.env.values(), request.cwd or "", request.user or "")
    for text in texts:
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise ExecInvalid(f"{text[:40]!r} has a character that no process can be given")
