"""A process is never mistaken for another that has its pid now."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from ramet.linux.process import HeldProcess, read_start_ticks, read_usage
from tests.linux.pids import start_as

pytestmark = pytest.mark.anyio

SLEEP = ("/bin/sleep", "1000")


async def test_a_pid_given_away_again_is_not_the_process_it_was() -> None:
    former = subprocess.Popen(SLEEP)  # noqa: ASYNC220
    ticks = read_start_ticks(former.pid)
    former.kill()
    former.wait()
    with pytest.raises(ProcessLookupError):
        HeldProcess(former.pid, start_ticks=ticks)
    while _next_tick() == ticks:  # It is 10 ms long; whoever gets a pid again in the same one looks the same.
        os.sched_yield()
    start_as(former.pid, SLEEP)
    try:
        with pytest.raises(ProcessLookupError):
            HeldProcess(former.pid, start_ticks=ticks)
        HeldProcess(former.pid).close()
    finally:
        os.kill(former.pid, signal.SIGKILL)
        os.waitpid(former.pid, 0)  # noqa: ASYNC222


async def test_a_held_process_that_ended_is_not_signalled_under_its_pid(tmp_path: Path) -> None:
    held = HeldProcess.start(SLEEP, output=tmp_path / "log", cwd=tmp_path)
    held.send_signal(signal.SIGKILL)
    await held.wait_exited()
    start_as(held.pid, SLEEP)
    held.send_signal(signal.SIGKILL)
    assert os.waitpid(held.pid, os.WNOHANG) == (0, 0)  # noqa: ASYNC222
    os.kill(held.pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(held.pid, 0)[1]) == -signal.SIGKILL  # noqa: ASYNC222


def _next_tick() -> int:
    """Return the tick in which a process started now would have started."""
    probe = subprocess.Popen(SLEEP)
    try:
        return read_start_ticks(probe.pid)
    finally:
        probe.kill()
        probe.wait()


def test_usage_is_of_that_process_and_no_later_one() -> None:
    ticks = read_start_ticks(os.getpid())
    before = read_usage(os.getpid(), start_ticks=ticks)
    held = bytes(64 << 20)
    while read_usage(os.getpid(), start_ticks=ticks).cpu_s == before.cpu_s:
        hash(held[:1000])  # The kernel counts in ticks of 10 ms.
    after = read_usage(os.getpid(), start_ticks=ticks)
    assert before.cpu_s < after.cpu_s
    assert 0 < after.resident_bytes < after.virtual_bytes
    assert after.virtual_bytes >= before.virtual_bytes + len(held)
    with pytest.raises(ProcessLookupError):
        read_usage(os.getpid(), start_ticks=ticks + 1)
