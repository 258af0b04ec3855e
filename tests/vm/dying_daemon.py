"""`ramet serve`, but it kills itself: python -m tests.vm.dying_daemon FOLDER

For each line on stdin, a JSON list of arguments of `ramet`, a daemon is forked that has all imported; its pid
is told in a line, and in another, when it has ended, how. Its output goes where this process's errors go.

When an operation begins, FOLDER/deadly says before which step of it (see `tests.steps`) the daemon is to die;
an empty one lets it live, and FOLDER/steps tell what steps it takes. SIGKILL from inside is as sudden as from
outside, and hits the instruction that is meant.
"""

import functools
import gc
import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ramet.instance.fleet import Fleet
from ramet.snapshots import capture
from tests.steps import HOST, watch_steps

OPERATIONS: Final = ("create", "fork", "stop", "start", "delete")


class Mortal:
    """What is done at each step of a daemon that is to die."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._deadly = ""
        # A line in a log is no step of an operation: there may be one of what was done before it.
        self._steps = watch_steps(self.reach, not_from=(*HOST, "ramet.logs"))

    def reach(self, step: str) -> None:
        if step == self._deadly:
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()
        if not self._deadly:
            with (self._folder / "steps").open("a") as file:
                file.write(f"{step}\n")

    def beginning(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        """Return `operation`, with which the steps begin."""

        @functools.wraps(operation)
        async def begun(*arguments: Any, **named: Any) -> Any:
            self._deadly = (self._folder / "deadly").read_text()
            (self._folder / "steps").unlink(missing_ok=True)
            self._steps.begin()
            return await operation(*arguments, **named)

        return begun


def main() -> None:
    mortal = Mortal(Path(sys.argv.pop(1)))
    for name in OPERATIONS:
        setattr(Fleet, name, mortal.beginning(getattr(Fleet, name)))
    # Every capture draws its source's chain together first, so that this is among its steps.
    setattr(capture, "CHAIN_LENGTH_MAX", 1)  # noqa: B010  # Other modules see it as a constant.
    ramet = importlib.import_module("ramet.cli.main").main
    importlib.import_module("ramet.daemon.main")  # What `serve` needs.
    gc.collect()
    gc.freeze()  # What is shared with the daemons need not be looked through by each.
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
            sys.argv = ["ramet", *json.loads(line)]
            ramet()
            return
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
