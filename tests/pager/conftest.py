"""A pager of our own for each test, and VMMs that depend on it."""

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from ramet.boot.locate import PAGER_PROGRAM, native_program
from ramet.pager import PagerClient, PagerSupervisor

VMM_PROGRAM = Path(__file__).with_name("vmm.py")


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder whose path is short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="pager-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def program() -> Path:
    return native_program(PAGER_PROGRAM)


@pytest.fixture
async def supervisor(folder: Path, program: Path) -> AsyncIterator[PagerSupervisor]:
    """A started pager; it is killed afterwards."""
    supervisor = PagerSupervisor(folder / "pagers", program)
    await supervisor.start()
    yield supervisor
    with contextlib.suppress(ProcessLookupError):
        os.kill(supervisor.pid, signal.SIGKILL)
    await supervisor.wait_exited()
    supervisor.close()


@pytest.fixture
def client(supervisor: PagerSupervisor, folder: Path) -> PagerClient:
    (own,) = (folder / "pagers").iterdir()
    return PagerClient(own / "control.sock")


class VmmProcess:
    """A running tests/pager/vmm.py."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def ask(self, name: str, **arguments: object) -> object:
        """Call one of its methods.

        Raises:
            EOFError: it ended instead of answering.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, arguments]).encode() + b"\n")
        line = await self.process.stdout.readline()
        if not line:
            raise EOFError(name)
        return json.loads(line)

    async def read(self, at: int, size: int) -> bytes:
        return base64.b64decode(str(await self.ask("read", at=at, size=size)))

    async def write(self, at: int, data: bytes) -> None:
        await self.ask("write", at=at, data=base64.b64encode(data).decode())

    async def stop(self) -> int:
        """End it as its user would; return its exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return await self.process.wait()


NewVmm = Callable[[Path], Awaitable[VmmProcess]]


@pytest.fixture
async def new_vmm() -> AsyncIterator[NewVmm]:
    """Return what starts a VMM for a session's socket; all are killed afterwards."""
    made: list[VmmProcess] = []

    async def start(path: Path) -> VmmProcess:
        pipe = asyncio.subprocess.PIPE
        limit = 64 * 1024 * 1024
        made.append(
            VmmProcess(
                await asyncio.create_subprocess_exec(
                    sys.executable, str(VMM_PROGRAM), str(path), stdin=pipe, stdout=pipe, limit=limit
                )
            )
        )
        return made[-1]

    yield start
    for vmm in made:
        if vmm.process.returncode is None:
            vmm.process.kill()
        await vmm.process.wait()
