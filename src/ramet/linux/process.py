"""Processes that outlive us, held by descriptor.

A pid is a number the kernel gives away again, so a process is named by pid, start time and boot, and
held by a pidfd from the moment it is found. A started process gets a session of its own and files, never
pipes, for its output: nothing of it ends when the daemon does.
"""

import asyncio
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from ramet.linux.plain_file import open_plain

PROC: Final = Path("/proc")
# proc_pid_stat(5), counted from 1.
_FIRST_FIELD: Final = 3  # Behind pid and name.
_UTIME_FIELD: Final = 14
_STIME_FIELD: Final = 15
_START_TIME_FIELD: Final = 22
_VSIZE_FIELD: Final = 23  # Bytes.
_RSS_FIELD: Final = 24  # Pages.
_STAT_BYTES_MAX: Final = 4096  # 52 numbers and a name of 64 bytes at most.


@cache
def read_boot_id() -> str:
    """Return the identifier of this boot of the kernel; start times compare only within one."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """What a process uses: processor time of all of its threads, and memory."""

    cpu_s: float
    resident_bytes: int
    virtual_bytes: int


def read_start_ticks(pid: int) -> int:
    """Return when process `pid` started, in clock ticks since boot.

    Raises:
        ProcessLookupError: there is no such process.
    """
    return int(_read_stat(pid)[_START_TIME_FIELD - _FIRST_FIELD])


def read_usage(pid: int, *, start_ticks: int) -> ProcessUsage:
    """Return what the process uses that has `pid` since `start_ticks`.

    Raises:
        ProcessLookupError: there is no such process, or it is another.
    """
    fields = _read_stat(pid)
    if int(fields[_START_TIME_FIELD - _FIRST_FIELD]) != start_ticks:
        raise ProcessLookupError(pid)
    user, system = (int(fields[field - _FIRST_FIELD]) for field in (_UTIME_FIELD, _STIME_FIELD))
    return ProcessUsage(
        cpu_s=(user + system) / os.sysconf("SC_CLK_TCK"),
        resident_bytes=int(fields[_RSS_FIELD - _FIRST_FIELD]) * os.sysconf("SC_PAGE_SIZE"),
        virtual_bytes=int(fields[_VSIZE_FIELD - _FIRST_FIELD]),
    )


def _read_stat(pid: int) -> list[bytes]:
    """Return the fields of /proc/PID/stat from the third on, which is `_FIRST_FIELD`."""
    try:
        fd = os.open(f"{PROC}/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ProcessLookupError(pid) from error
    try:
        line = os.read(fd, _STAT_BYTES_MAX)
    finally:
        os.close(fd)
    # The command name, field 2, is in parentheses and may itself hold spaces and parentheses.
    return line.rpartition(b")")[2].split()


def list_command_lines() -> Iterator[tuple[int, list[str]]]:
    """Yield (pid, arguments) of every process that has a command line."""
    for name in os.listdir(PROC):
        if not name.isdecimal():
            continue
        try:
            with open(f"{PROC}/{name}/cmdline", "rb", buffering=0) as file:
                raw = file.read()
        except (FileNotFoundError, ProcessLookupError):
            continue  # It ended while we looked.
        if raw:
            yield int(name), [os.fsdecode(part) for part in raw.split(b"\0")[:-1]]


def read_maps(pid: int) -> Iterator[tuple[int, int, str, str]]:
    """Yield (start address, end address, permissions, path) of the mappings of `pid`.

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        text = (PROC / str(pid) / "maps").read_text()
    except FileNotFoundError as error:
        raise ProcessLookupError(pid) from error
    for match in re.finditer(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \d+ *(.*)$", text, re.MULTILINE):
        yield int(match[1], 16), int(match[2], 16), match[3], match[4]


def mapped_memfds(pid: int, name: str) -> dict[str, int]:
    """Return the memfds called `name` that `pid` maps: identity, the same in every process, to bytes mapped.

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        text = (PROC / str(pid) / "maps").read_text()
    except FileNotFoundError as error:
        raise ProcessLookupError(pid) from error
    found: dict[str, int] = {}
    pattern = rf"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ (\S+ \d+) +/memfd:{re.escape(name)} \(deleted\)$"
    for match in re.finditer(pattern, text, re.MULTILINE):
        found[match[3]] = found.get(match[3], 0) + int(match[2], 16) - int(match[1], 16)
    return found


class HeldProcess:
    """One process, ours or found, that cannot be mistaken for another.

    Raises, on construction:
        ProcessLookupError: it is gone, or `start_ticks` says that the pid belongs to another now.
    """

    def __init__(self, pid: int, *, start_ticks: int | None = None) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._child: subprocess.Popen[bytes] | None = None
        self._exited = asyncio.Event()
        self._when_exited: list[Callable[[], None]] = []
        self._loop = asyncio.get_running_loop()
        try:
            self.start_ticks = read_start_ticks(pid)
            if start_ticks is not None and self.start_ticks != start_ticks:
                raise ProcessLookupError(pid)
        except BaseException:
            os.close(self._pidfd)
            raise
        self._loop.add_reader(self._pidfd, self._see_exit)

    @classmethod
    def start(
        cls,
        argv: Sequence[str],
        *,
        output: Path,
        cwd: Path,
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> "HeldProcess":
        """Start `argv` in a session of its own; stdin null, stdout and stderr appended to `output`.

        Without an `environment` it has ours.

        Raises:
            OSError: the program cannot be executed.
        """
        sink = open_plain(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                cwd=cwd,
                pass_fds=tuple(pass_fds),
                env=environment,
                start_new_session=True,
            )
        finally:
            os.close(sink)
        held = cls(child.pid)
        held._child = child
        return held

    @property
    def is_exited(self) -> bool:
        return self._exited.is_set()

    async def wait_exited(self) -> None:
        """Return when the process is gone, all its descriptors closed and, if it was ours, reaped."""
        await self._exited.wait()

    @contextmanager
    def when_exited(self, call: Callable[[], None]) -> Iterator[None]:
        """Inside, have `call` called as soon as the process is gone; at once, if it is."""
        self._when_exited.append(call)
        try:
            if self.is_exited:
                call()
            yield
        finally:
            self._when_exited.remove(call)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; harmless if the process is gone."""
        if self._exited.is_set():
            return
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return

    def close(self) -> None:
        """Let go of the process, which goes on."""
        if not self._exited.is_set():
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._exited.set()
            if self._child is not None:
                self._child.returncode = 0  # Not ours to wait for any more; keeps Popen silent.

    def _see_exit(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        if self._child is not None:
            self._child.wait()
        self._exited.set()
        for call in self._when_exited:
            call()
