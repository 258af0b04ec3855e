"""One pager for each version, which outlives whoever started it."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import anyio
import pytest

from ramet.linux.process import HeldProcess
from ramet.pager import (
    PagerClient,
    PagerDraining,
    PagerFailed,
    PagerSupervisor,
    PagerUnreachable,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def base(folder: Path) -> Path:
    path = folder / "base"
    path.write_bytes(bytes(8192))
    return path


def write_program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


async def test_a_second_daemon_finds_the_same_pager(
    supervisor: PagerSupervisor, client: PagerClient, folder: Path, program: Path, base: Path
) -> None:
    await client.open_session("a", base, 8192)
    second = PagerSupervisor(folder / "pagers", program)
    adopted = await second.start()
    assert second.pid == supervisor.pid
    assert (await adopted.health()).session_count == 1
    second.close()
    second.close()
    assert (await client.health()).session_count == 1


async def test_daemons_that_start_at_once_get_one_pager(folder: Path, program: Path) -> None:
    daemons = [PagerSupervisor(folder / "pagers", program) for _ in range(5)]
    async with anyio.create_task_group() as group:
        for daemon in daemons:
            group.start_soon(daemon.start)
    (pid,) = {daemon.pid for daemon in daemons}
    os.kill(pid, signal.SIGKILL)
    for daemon in daemons:
        await daemon.wait_exited()
        daemon.close()


START = """
import asyncio, os, signal, sys
from pathlib import Path
from ramet.pager import PagerSupervisor

async def main():
    supervisor = PagerSupervisor(Path(sys.argv[1]), Path(sys.argv[2]))
    client = await supervisor.start()
    await client.open_session("a", Path(sys.argv[3]), 8192)
    os.killpg(0, signal.SIGKILL)

asyncio.run(main())
"""


async def test_a_pager_outlives_a_daemon_that_is_killed(folder: Path, program: Path, base: Path) -> None:
    daemon = await asyncio.create_subprocess_exec(
        sys.executable, "-c", START, folder / "pagers", program, base, start_new_session=True
    )
    assert await daemon.wait() == -signal.SIGKILL
    supervisor = PagerSupervisor(folder / "pagers", program)
    client = await supervisor.start()
    assert os.getsid(supervisor.pid) == supervisor.pid
    assert [session.id for session in (await client.statistics()).sessions] == ["a"]
    await client.close_session("a")
    await client.drain()
    await supervisor.wait_exited()
    supervisor.close()


async def test_a_pager_that_was_killed_is_replaced_at_the_next_start(
    supervisor: PagerSupervisor, client: PagerClient, folder: Path, program: Path, base: Path
) -> None:
    stale = await client.open_session("a", base, 8192)
    os.kill(supervisor.pid, signal.SIGKILL)
    await supervisor.wait_exited()
    with pytest.raises(PagerUnreachable):
        await client.health()
    second = PagerSupervisor(folder / "pagers", program)
    fresh = await second.start()
    assert second.pid != supervisor.pid
    assert not stale.exists()
    assert (await fresh.health()).session_count == 0
    await fresh.drain()
    await second.wait_exited()
    second.close()


@pytest.mark.parametrize("how", ["drain", "SIGTERM"])
async def test_a_drained_pager_exits_after_its_last_session(
    supervisor: PagerSupervisor, client: PagerClient, folder: Path, program: Path, base: Path, how: str
) -> None:
    await client.open_session("a", base, 8192)
    if how == "drain":
        await client.drain()
    else:
        os.kill(supervisor.pid, signal.SIGINT)  # Not heard.
        os.kill(supervisor.pid, signal.SIGTERM)
    while not (await client.health()).is_draining:
        pass
    with pytest.raises(PagerDraining):
        await PagerSupervisor(folder / "pagers", program).start()
    await client.close_session("a")
    await supervisor.wait_exited()


async def test_other_versions_are_drained_and_cleared_away(
    supervisor: PagerSupervisor, client: PagerClient, folder: Path, program: Path, base: Path
) -> None:
    # Says that it is another version, and then is this one.
    old_program = write_program(
        folder / "old", f'[ "$1" = --version ] && echo ramet-pager 0.0.9 && exit\nexec {program} "$@"'
    )
    with pytest.raises(PagerFailed, match=r"not 0\.0\.9"):
        await PagerSupervisor(folder / "pagers", old_program).start()
    old = PagerClient(folder / "pagers" / "0.0.9" / "control.sock")
    process = HeldProcess((await old.health()).pid)
    await old.open_session("a", base, 8192)
    assert await supervisor.drain_others() == {"0.0.9": 1}
    await old.close_session("a")
    await process.wait_exited()
    assert await supervisor.drain_others() == {}
    assert not (folder / "pagers" / "0.0.9").exists()
    assert not (await client.health()).is_draining


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo something else", "does not tell its version"),
        ("exit 1", "does not tell its version"),
        ('[ "$1" = --version ] && echo ramet-pager 0.0.1 && exit\nexit 3', "as soon as it was started"),
    ],
)
async def test_a_program_that_is_no_pager_is_told(folder: Path, text: str, message: str) -> None:
    program = write_program(folder / "program", text)
    with pytest.raises(PagerFailed, match=message):
        await PagerSupervisor(folder / "pagers", program).start()


async def test_a_program_that_is_not_there_is_told(folder: Path) -> None:
    with pytest.raises(PagerFailed, match="does not run"):
        await PagerSupervisor(folder / "pagers", folder / "none").start()
