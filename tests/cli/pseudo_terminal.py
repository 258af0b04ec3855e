"""A person at a terminal, who runs a command of ours there."""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

ANSWER_TIMEOUT_S = 60.0


class PseudoTerminal:
    """A terminal with one process on it, and what somebody who sits there sees."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._keyboard, self._line = pty.openpty()
        self.seen = b""
        self.process: subprocess.Popen[bytes] | None = None
        self.resize(*size)
        self.modes_before = self.modes()

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for fd in (self._keyboard, self._line):
            os.close(fd)

    def start(self, arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
        """Run a command of ours with this as its terminal."""
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BEGIN, *arguments],
            env=environment,
            stdin=self._line,
            stdout=self._line,
            stderr=self._line,
            start_new_session=True,
        )

    def resize(self, rows: int, cols: int) -> None:
        """Change the size, of which the process is told by SIGWINCH."""
        fcntl.ioctl(self._keyboard, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def modes(self) -> list[Any]:
        return termios.tcgetattr(self._line)

    def set_modes(self, modes: list[Any]) -> None:
        termios.tcsetattr(self._line, termios.TCSANOW, modes)

    def type(self, text: str) -> None:
        os.write(self._keyboard, text.encode())

    def wait_seen(self, text: str) -> None:
        """Wait until `text` stands in what is new."""
        until = time.monotonic() + ANSWER_TIMEOUT_S
        while text.encode() not in self.seen:
            assert self._read(until - time.monotonic()), (text, self.seen)
        self.seen = self.seen.partition(text.encode())[2]

    def wait_end(self) -> int:
        """Wait until the process has ended; what it wrote is then seen."""
        assert self.process is not None
        until = time.monotonic() + ANSWER_TIMEOUT_S
        while self.process.poll() is None:
            assert time.monotonic() < until, self.seen
            self._read(0.05)
        while self._read(0):
            pass
        return self.process.returncode

    def _read(self, timeout_s: float) -> bytes:
        if not select.select([self._keyboard], [], [], max(0, timeout_s))[0]:
            return b""
        data = os.read(self._keyboard, 65536)
        self.seen += data
        return data


# The terminal becomes that of the new session, so that it sends its signals there.
_BEGIN = (
    "import fcntl, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    # Whoever starts the tests in the background has it ignored.
    " signal.signal(signal.SIGINT, signal.default_int_handler);"
    " from ramet.cli.main import run; sys.exit(run(sys.argv[1:]))"
)


@contextmanager
def at_terminal(
    *arguments: str, environment: Mapping[str, str], size: tuple[int, int] = (24, 80)
) -> Iterator[PseudoTerminal]:
    """Run a command of ours on a terminal of that many rows and columns."""
    terminal = PseudoTerminal(size)
    try:
        terminal.start(arguments, environment)
        yield terminal
    finally:
        terminal.close()
