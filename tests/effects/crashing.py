"""Having daemons on a host killed in the middle of operations."""

import signal
import subprocess
import sys
from pathlib import Path

from tests.effects.crash import Operation
from tests.effects.world import World

ROOT = Path(__file__).parents[2]


class Crashes:
    """The process that becomes those daemons, one after another (see `tests.effects.crash`)."""

    def __init__(self, world: World) -> None:
        self._folder = world.folder
        argv = [sys.executable, "-m", "tests.effects.crash", str(world.folder), str(world.images)]
        with (world.folder / "crash.log").open("wb") as log:
            self._process = subprocess.Popen(
                argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def _operate(self, operation: Operation, step: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{operation};{step}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        code = int(answer)
        assert code in (0, -signal.SIGKILL), (self._folder / "crash.log").read_text()[-4000:]
        return code

    def find_steps(self, operation: Operation) -> list[str]:
        """Have a daemon do an operation, and return the steps it took."""
        assert self._operate(operation, "") == 0
        return (self._folder / "steps").read_text().splitlines()

    def die(self, operation: Operation, step: str) -> bool:
        """Have a daemon killed when it is about to take a step; returns False if it never was."""
        return self._operate(operation, step) != 0

    def close(self) -> None:
        self._process.communicate()
