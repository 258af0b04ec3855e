"""A command on a terminal of the guest, behind this process's own.

While it runs the terminal here is raw: every key, Ctrl-C and Ctrl-D too, is a byte for the terminal in the
guest, which gives it its meaning. Whatever ends the command, the terminal is then as it was; so signals that
would end this process are taken by a thread that ends the session instead.
"""

import os
import signal
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from ramet.cli.output import write_bytes
from ramet.client import ConnectionBroken
from ramet.client.exec import ExecConnection
from ramet.core.errors import Invalid
from ramet.wire_api.exec import STDIN_MESSAGE_BYTES

EXIT_SIGNALLED: Final = 128  # Plus the signal's number, as shells have it.
_ENDING: Final = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT})
_TAKEN: Final = _ENDING | {signal.SIGWINCH, signal.SIGCONT}


class NotATerminal(Invalid):
    """Stdin is no terminal, and would have to be one."""

    code = "not_a_terminal"


def require_terminal() -> None:
    """Refuse to read keys from what has none.

    Raises:
        NotATerminal: stdin is no terminal.
    """
    if not os.isatty(0):
        raise NotATerminal("The input device is not a terminal", remedy="leave -t out, or -i")


def window_size() -> tuple[int, int] | None:
    """Return (rows, columns) of the terminal here; None if there is none, or it has no size."""
    for fd in (1, 0, 2):
        try:
            found = os.get_terminal_size(fd)
        except OSError:
            continue
        if found.lines > 0 and found.columns > 0:
            return found.lines, found.columns
    return None


class Signals:
    """Signals held back until `pass_on_to`; has an effect only while they are blocked in every thread."""

    def __init__(self) -> None:
        self.ended_by: int | None = None

    def pass_on_to(self, session: ExecConnection, keys: "RawKeys | None") -> None:
        """Take them in a thread: a new size goes to the guest, what would end us ends the session."""
        threading.Thread(target=self._wait, args=(session, keys), daemon=True).start()

    def _wait(self, session: ExecConnection, keys: "RawKeys | None") -> None:
        while True:
            number = signal.sigwait(_TAKEN)
            if number in _ENDING:
                self.ended_by = number
                session.abandon()
                return
            if number == signal.SIGCONT and keys is not None:
                keys.set_raw()  # Whoever had stopped us has used the terminal meanwhile.
            size = window_size()
            try:
                if size is not None:
                    session.resize(*size)
            except ConnectionBroken:
                return  # The command has just ended; the other thread knows how.


@contextmanager
def signals_held() -> Iterator[Signals]:
    """Block the signals; enter it before any thread is started, which inherits that."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)
    try:
        yield Signals()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class RawKeys:
    """Stdin, a terminal, raw while the `with` lasts."""

    def __init__(self) -> None:
        self._before = termios.tcgetattr(0)

    def __enter__(self) -> "RawKeys":
        self.set_raw()
        return self

    def __exit__(self, *_: object) -> None:
        # Not TCSADRAIN: output that nobody takes, as behind Ctrl-S, must not keep us.
        termios.tcsetattr(0, termios.TCSANOW, self._before)

    def set_raw(self) -> None:
        """Make it raw, again too."""
        tty.setraw(0, termios.TCSANOW)


def converse(session: ExecConnection, signals: Signals, *, interactive: bool) -> int:
    """Connect a session on a terminal with this process's; return the exit code.

    Raises:
        ApiError: it could not be run.
        ConnectionBroken: the connection ended before it.
    """
    if not interactive:
        signals.pass_on_to(session, None)
        return _show(session, signals)
    with RawKeys() as keys:
        signals.pass_on_to(session, keys)
        threading.Thread(target=_pump_keys, args=(session,), daemon=True).start()
        return _show(session, signals)


def _show(session: ExecConnection, signals: Signals) -> int:
    try:
        for _, data in session.output():
            write_bytes(data)
    except ConnectionBroken:
        if signals.ended_by is not None:
            return EXIT_SIGNALLED + signals.ended_by
        raise
    return session.exit_code


def _pump_keys(session: ExecConnection) -> None:
    try:
        while True:
            try:
                data = os.read(0, STDIN_MESSAGE_BYTES)
            except OSError:
                data = b""  # The terminal has hung up.
            if not data:
                session.close_stdin()
                return
            session.write(data)
    except ConnectionBroken:
        return  # The command has ended; the other thread knows how.
