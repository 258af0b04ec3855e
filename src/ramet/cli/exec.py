"""The exec command: a guest's command with this process's stdin, stdout, stderr and exit code.

On a terminal it is `ramet.cli.terminal`'s; here it is on pipes.
Ctrl-C goes to the command; a second one gives up on it. The signal is taken by a thread that waits for it,
so that it cannot strike between receiving output and writing it.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import click

from ramet.cli.options import command_words, connect, env_option
from ramet.cli.output import report, write_bytes
from ramet.client import ApiError, Client, ConnectionBroken
from ramet.client.exec import ExecConnection
from ramet.core.units import parse_duration
from ramet.wire_api.exec import (
    COMMAND_NOT_FOUND_EXIT_CODE,
    NOT_EXECUTABLE_EXIT_CODE,
    STDERR,
    STDIN_MESSAGE_BYTES,
    ExecOpening,
    ExecStart,
)

EXIT_INTERRUPTED: Final = 130
_EXIT_CODES: Final = {
    "command_not_found": COMMAND_NOT_FOUND_EXIT_CODE,
    "not_executable": NOT_EXECUTABLE_EXIT_CODE,
}


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.argument("instance")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
@click.option("-i", "--interactive", is_flag=True, help="Pass stdin on to the command.")
@click.option("-t", "--tty", is_flag=True, help="Run it on a terminal; with -i, behind this one.")
@env_option
@click.option(
    "-w",
    "--cwd",
    "--workdir",
    "cwd",
    metavar="PATH",
    help="The command's working directory in the guest.",
)
@click.option("-u", "--user", help="Run as this user of the guest.")
@click.option("-d", "--detach", is_flag=True, help="Leave it running; print its session, for ramet attach.")
@click.option(
    "--keep", metavar="DURATION", help="With -d, end it when nobody is attached for so long (10m by default)."
)
@click.option("--timeout", metavar="DURATION", help="Kill the command after this time, such as 90s.")
@click.pass_context
def exec_command(
    context: click.Context,
    instance: str,
    command: tuple[str, ...],
    interactive: bool,
    tty: bool,
    env: dict[str, str],
    cwd: str | None,
    user: str | None,
    detach: bool,
    keep: str | None,
    timeout: str | None,
) -> int:
    """Run COMMAND in a running instance; exit with its exit code. Options stand before INSTANCE."""
    if detach and tty:
        raise click.UsageError("-d runs it on no terminal: leave -t out")
    if keep is not None and not detach:
        raise click.UsageError("--keep is for -d")
    start = ExecStart(
        command=command_words(command),
        env=env or None,
        cwd=cwd,
        user=user,
        timeout=parse_duration(timeout) if timeout else 0,
        stdin=interactive,
    )
    client = connect(context)
    try:
        if detach:
            with client.hold_exec(instance, ExecOpening(start, keep=keep)) as session:
                click.echo(session.session)
            return 0
        return (_run_on_terminal if tty else _run_on_pipes)(client, instance, start)
    except ApiError as error:
        report(error)
        return _EXIT_CODES.get(error.error.code, 1)


def _run_on_terminal(client: Client, instance: str, start: ExecStart) -> int:
    from ramet.cli import terminal  # Needs a Unix terminal, which other commands need not.

    if start.stdin:
        terminal.require_terminal()
    with terminal.signals_held() as signals:
        rows, cols = terminal.window_size() or (None, None)
        start = replace(start, tty=True, rows=rows, cols=cols)
        with client.exec(instance, start) as session:
            return terminal.converse(session, signals, interactive=start.stdin)


def _run_on_pipes(client: Client, instance: str, start: ExecStart) -> int:
    with _interrupts_held() as interrupts, client.exec(instance, start) as session:
        interrupts.pass_on_to(session)
        try:
            return pass_through(session, interactive=start.stdin)
        except ConnectionBroken:
            if interrupts.count > 1:
                return EXIT_INTERRUPTED
            raise


def pass_through(session: ExecConnection, *, interactive: bool) -> int:
    """Have this process's stdin, stdout and stderr be those of a command; return its exit code.

    Raises:
        ApiError, ConnectionBroken: see `ExecConnection.output`.
    """
    if interactive:
        threading.Thread(target=_pump_stdin, args=(session,), daemon=True).start()
    for stream, data in session.output():
        write_bytes(data, to_stderr=stream == STDERR)
    return session.exit_code


class _Interrupts:
    """Counts Ctrl-C and passes it on; has an effect only while SIGINT is blocked in every thread."""

    def __init__(self) -> None:
        self.count = 0

    def pass_on_to(self, session: ExecConnection) -> None:
        threading.Thread(target=self._wait, args=(session,), daemon=True).start()

    def _wait(self, session: ExecConnection) -> None:
        while True:
            signal.sigwait({signal.SIGINT})
            self.count += 1
            if self.count > 1:
                session.abandon()
                return
            try:
                session.send_signal(signal.SIGINT)
            except ConnectionBroken:
                return  # The command has just ended; the other thread knows how.


@contextmanager
def _interrupts_held() -> Iterator[_Interrupts]:
    # Before any thread is started: they inherit the mask.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield _Interrupts()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pump_stdin(session: ExecConnection) -> None:
    try:
        # Not sys.stdin: a thread that holds its lock at exit would abort the interpreter.
        while data := os.read(0, STDIN_MESSAGE_BYTES):
            session.write(data)
        session.close_stdin()
    except ConnectionBroken:
        return  # The command has ended; the other thread knows how.
