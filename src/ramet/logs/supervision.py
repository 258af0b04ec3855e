"""The daemon's side of the process that keeps logs bounded: started with the daemon, again if it ends."""

import os
import sys
from pathlib import Path
from typing import Final

import anyio
import structlog

from ramet.linux.process import HeldProcess
from ramet.logs.rotation import LogBounds

WORDS_FILE: Final = "log-keeper.log"
RESTART_INTERVAL_S: Final = 1.0

log = structlog.get_logger(__name__)


async def keep_logs_bounded(data: Path, bounds: LogBounds) -> None:
    """Have a keeper for the logs of all instances, which outlives us if their VMMs do.

    Raises:
        OSError: it cannot be started.
    """
    while True:
        (data / WORDS_FILE).unlink(missing_ok=True)
        theirs, ours = os.pipe()
        try:
            try:
                command = _command(data, bounds, theirs)
                keeper = HeldProcess.start(command, output=data / WORDS_FILE, cwd=data, pass_fds=[theirs])
            finally:
                os.close(theirs)
            try:
                await keeper.wait_exited()
            finally:
                keeper.close()
        finally:
            os.close(ours)  # This is how it learns that we are gone.
        log.warning("log_keeper_ended", words=str(data / WORDS_FILE))
        await anyio.sleep(RESTART_INTERVAL_S)


def _command(data: Path, bounds: LogBounds, daemon_fd: int) -> list[str]:
    numbers = map(str, (bounds.file_bytes_max, bounds.rotated_count, daemon_fd))
    return [sys.executable, "-P", "-m", "ramet.logs.keeper", str(data), *numbers]
