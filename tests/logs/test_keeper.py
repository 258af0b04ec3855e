"""The process that bounds logs outlives its daemon for as long as anybody writes."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from ramet.linux.process import list_command_lines
from ramet.logs.rotation import LogBounds
from ramet.logs.supervision import keep_logs_bounded

TIMEOUT_S = 60.0
BYTES_MAX = 1000


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "instances" / "i").mkdir(parents=True)
    return tmp_path


@contextmanager
def keeper(data: Path) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], None]]]:
    """Run a keeper; yields it and what ends its daemon."""
    theirs, ours = os.pipe()
    open_ends = [ours]
    command = [sys.executable, "-P", "-m", "ramet.logs.keeper", str(data), str(BYTES_MAX), "1", str(theirs)]
    process = subprocess.Popen(command, pass_fds=[theirs])
    os.close(theirs)
    try:
        yield process, lambda: os.close(open_ends.pop())
    finally:
        process.kill()
        process.wait()
        for fd in open_ends:
            os.close(fd)


@contextmanager
def vmm(data: Path) -> Iterator[None]:
    """Run a process that looks like a VMM of an instance."""
    command = [sys.executable, "-c", "input()", f"path={data}/instances/i/console.log"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    yield
    process.communicate(b"\n")


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def write_and_wait(data: Path) -> None:
    """Fill a log, and wait until it has been rotated."""
    log = data / "instances" / "i" / "output.log"
    with log.open("ab", buffering=0) as writer:
        writer.write(b"x" * BYTES_MAX + b"\n")
        wait_until(lambda: log.stat().st_size == 0)


def test_logs_are_bounded_without_a_daemon_until_the_last_vmm_is_gone(data: Path) -> None:
    with keeper(data) as (process, end_daemon):
        with vmm(data):
            write_and_wait(data)
            end_daemon()
            write_and_wait(data)
            write_and_wait(data)
            assert process.poll() is None
        assert process.wait(TIMEOUT_S) == 0


def test_a_keeper_makes_room_for_a_younger_one(data: Path) -> None:
    with vmm(data), keeper(data) as (old, end_daemon):
        write_and_wait(data)
        end_daemon()
        with keeper(data) as (new, _):
            assert old.wait(TIMEOUT_S) == 0
            write_and_wait(data)
            assert new.poll() is None


def test_a_keeper_ends_when_its_data_folder_is_gone(data: Path) -> None:
    with vmm(data), keeper(data) as (process, _):
        write_and_wait(data)
        (data / "instances").rename(data / "moved")
        assert process.wait(TIMEOUT_S) == 0


def keepers_of(data: Path) -> list[int]:
    return [
        pid
        for pid, arguments in list_command_lines()
        if "ramet.logs.keeper" in arguments and str(data) in arguments
    ]


@pytest.mark.anyio
async def test_the_daemon_has_a_keeper_again_when_one_ends(data: Path) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(keep_logs_bounded, data, LogBounds(BYTES_MAX, 1))
        await to_thread.run_sync(wait_until, lambda: bool(keepers_of(data)))
        (first,) = keepers_of(data)
        os.kill(first, 9)
        await to_thread.run_sync(wait_until, lambda: keepers_of(data) not in ([], [first]))
        await to_thread.run_sync(write_and_wait, data)
        group.cancel_scope.cancel()
    # Without daemon and VMMs it leaves.
    await to_thread.run_sync(wait_until, lambda: not keepers_of(data))
