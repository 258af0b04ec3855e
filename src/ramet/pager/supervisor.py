"""Starts the pager, or finds the one that is there: one process for each version on a host.

Guests sleep for ever in their next page fault when their pager ends, so it is in a session of its own,
outlives the daemon, and is never restarted. A lock that the pager inherits says whether one is alive, and
the kernel lets go of it however the pager ends; so two daemons that start at once get the same pager.
A new version does not replace an old one but has it drained.
"""

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import anyio

from ramet.linux.process import HeldProcess
from ramet.pager.client import PagerClient, PagerHealth
from ramet.pager.errors import PagerDraining, PagerFailed, PagerUnreachable

START_TIMEOUT_S: Final = 10.0
VERSION_TIMEOUT_S: Final = 10.0
LOG_BYTES_MAX: Final = 16 * 1024 * 1024  # A log longer than this is put aside when a pager starts.
_RETRY_DELAY_S: Final = 0.01

_CONTROL_NAME: Final = "control.sock"
_LOCK_NAME: Final = "lock"
_LOG_NAME: Final = "log"
_CONTROL_BACKLOG: Final = 64


class PagerSupervisor:
    """The pager that `program` is, in a folder of its version below `folder`.

    Closing lets go of the process, which goes on.

    Args:
        cache_bytes_max: what a pager that is started here keeps unpacked of packed bases at most; None: as
            much as it does by itself. One that is adopted keeps what it was started with.
    """

    def __init__(self, folder: Path, program: Path, cache_bytes_max: int | None = None) -> None:
        self._folder = folder.absolute()
        self._program = program.absolute()
        self._cache_bytes_max = cache_bytes_max
        self._process: HeldProcess | None = None

    async def start(self) -> PagerClient:
        """Start the pager, or adopt the one that runs, and return its client. Once only.

        Raises:
            PagerFailed: the program does not run, or does not answer within START_TIMEOUT_S seconds.
            PagerDraining: the one of this version that runs is being drained.
        """
        assert self._process is None
        version = await read_version(self._program)
        own = self._folder / version
        try:
            own.mkdir(parents=True, exist_ok=True, mode=0o700)
            with anyio.fail_after(START_TIMEOUT_S):
                health, process = await self._start_or_adopt(own)
        except TimeoutError as error:
            raise PagerUnreachable(f"pager {version} is there, but does not answer") from error
        except OSError as error:
            raise PagerFailed(f"pager {version} cannot be started: {error}") from error
        try:
            if health.version != version:
                raise PagerFailed(f"the pager in {own} says that it is {health.version}, not {version}")
            if health.is_draining:
                raise PagerDraining(f"pager {version} is being drained", remedy="wait until it has exited")
        except BaseException:
            process.close()
            raise
        self._process = process
        return PagerClient(own / _CONTROL_NAME)

    async def drain_others(self) -> dict[str, int]:
        """Drain the pagers of other versions and remove the folders of those that are gone.

        Returns the number of sessions by version of those that are still there.

        Raises:
            PagerFailed: one is there but did not answer; the others were asked nevertheless.
        """
        version = await read_version(self._program)
        left: dict[str, int] = {}
        failures: list[PagerFailed] = []
        for other in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
            if other.name == version or not (other / _LOCK_NAME).exists():
                continue
            with _locked(other) as lock:
                if lock is not None:
                    shutil.rmtree(other)
                    continue
            try:
                left[other.name] = await PagerClient(other / _CONTROL_NAME).drain()
            except PagerFailed as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return left

    def clients(self) -> list[PagerClient]:
        """Return those of all pagers that are alive, of whichever version."""
        found = []
        for folder in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
            if (folder / _LOCK_NAME).exists():
                with _locked(folder) as lock:
                    if lock is None:
                        found.append(PagerClient(folder / _CONTROL_NAME))
        return found

    async def served_pids(self) -> frozenset[int]:
        """Return the VMMs that a pager serves, of whichever version.

        Raises:
            PagerFailed: one is there but did not answer.
        """
        served: set[int] = set()
        for client in self.clients():
            sessions = (await client.statistics()).sessions
            served.update(session.vmm_pid for session in sessions if session.vmm_pid is not None)
        return frozenset(served)

    async def wait_exited(self) -> None:
        """Return when the pager is gone. Its guests stop in their next fault, and must be ended."""
        assert self._process is not None
        await self._process.wait_exited()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def close(self) -> None:
        """Let go of the pager, which goes on. Idempotent."""
        if self._process is not None:
            self._process.close()

    async def _start_or_adopt(self, own: Path) -> tuple[PagerHealth, HeldProcess]:
        client = PagerClient(own / _CONTROL_NAME)
        while True:
            with _locked(own) as lock:
                if lock is not None:
                    return await _confirm(client, self._spawn(own, lock))
            try:
                health = await client.health()
                return health, HeldProcess(health.pid)
            except (PagerUnreachable, ProcessLookupError):
                # It is exiting, or another daemon is about to start it: either way not for long.
                await anyio.sleep(_RETRY_DELAY_S)

    def _spawn(self, own: Path, lock: int) -> HeldProcess:
        """Start the program with the control socket open already: whoever connects from now on is heard."""
        for stale in (own / _CONTROL_NAME, *own.glob("*.session")):
            stale.unlink(missing_ok=True)
        log = own / _LOG_NAME
        if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
            log.replace(log.with_suffix(".old"))
        with socket.socket(socket.AF_UNIX) as control:
            control.bind(str(own / _CONTROL_NAME))
            (own / _CONTROL_NAME).chmod(0o600)
            control.listen(_CONTROL_BACKLOG)
            argv = [str(self._program), "--folder", str(own), "--control-fd", str(control.fileno())]
            if self._cache_bytes_max is not None:
                argv += ["--cache-bytes", str(self._cache_bytes_max)]
            return HeldProcess.start(argv, output=log, cwd=own, pass_fds=(control.fileno(), lock))


async def _confirm(client: PagerClient, process: HeldProcess) -> tuple[PagerHealth, HeldProcess]:
    try:
        return await client.health(), process
    except PagerFailed as error:
        process.close()
        raise PagerFailed(
            "the pager ended as soon as it was started", remedy=f"see {client.path.with_name(_LOG_NAME)}"
        ) from error
    except BaseException:
        process.close()
        raise


async def read_version(program: Path) -> str:
    """Return the version of the pager `program`, such as "0.1.0".

    Raises:
        PagerFailed: it does not run, or says something else.
    """
    try:
        async with asyncio.timeout(VERSION_TIMEOUT_S):
            asked = await asyncio.create_subprocess_exec(
                program, "--version", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
            )
            try:
                told, _ = await asked.communicate()
            finally:
                if asked.returncode is None:
                    asked.kill()
    except (OSError, TimeoutError) as error:
        raise PagerFailed(f"{program} does not run: {error or 'time-out'}") from error
    found = re.fullmatch(rb"ramet-pager ([0-9A-Za-z.+-]+)\n", told)
    if found is None:
        raise PagerFailed(f"{program} does not tell its version")
    return found[1].decode()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int | None]:
    """Hold the lock that says that a pager of this folder is alive; None: one is.

    A process started meanwhile that inherits the descriptor goes on holding it.
    """
    lock = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield lock
    finally:
        os.close(lock)
