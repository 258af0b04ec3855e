"""Daemons that kill themselves, one after another, forked by a process that has imported all they need."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
FORK_TIMEOUT_S = 60.0


class MortalDaemon:
    """One of them, as `subprocess.Popen` would show it."""

    def __init__(self, pid: int, answers: "Answers") -> None:
        self.pid = pid
        self._answers = answers
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return how it ended, None while it runs."""
        if self._code is None and self._answers.is_there(0.0):
            self._code = self._answers.read()
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended, and return how.

        Raises:
            subprocess.TimeoutExpired: it goes on running.
        """
        if self._code is None:
            if not self._answers.is_there(timeout):
                raise subprocess.TimeoutExpired("a mortal daemon", timeout or 0.0)
            self._code = self._answers.read()
        return self._code

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:  # Else its number may be another's.
            os.kill(self.pid, number)


class Answers:
    """The numbers that the process tells, a line each."""

    def __init__(self, fd: int) -> None:
        self._fd, self._received = fd, b""

    def is_there(self, timeout_s: float | None) -> bool:
        """Tell whether there is one, or comes in time."""
        return b"\n" in self._received or bool(select.select([self._fd], [], [], timeout_s)[0])

    def read(self) -> int:
        """Return the next one."""
        while b"\n" not in self._received:
            more = os.read(self._fd, 4096)
            assert more, "what forks daemons is gone"
            self._received += more
        line, _, self._received = self._received.partition(b"\n")
        return int(line)


class Mortals:
    """The process that forks them (`dying_daemon`), in the caller's network namespace."""

    def __init__(self, folder: Path) -> None:
        with (folder / "daemon.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.vm.dying_daemon", str(folder)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._process.stdout is not None
        self._answers = Answers(self._process.stdout.fileno())

    def start(self, arguments: Sequence[str]) -> MortalDaemon:
        """Start one; the one before must have ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(arguments).encode() + b"\n")
        self._process.stdin.flush()
        assert self._answers.is_there(FORK_TIMEOUT_S), "what forks daemons does not answer"
        return MortalDaemon(self._answers.read(), self._answers)

    def close(self) -> None:
        """End the process; the last daemon must have ended."""
        self._process.communicate()
