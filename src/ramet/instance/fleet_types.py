"""What the fleet is asked and what it answers: the border between the API and the instances."""

import signal
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from ramet.core.errors import Broken, Conflict, Invalid, NotFound, RametError, Unsupported
from ramet.core.health import Health
from ramet.core.spec import Exit, InstanceRecord, State

WINDOW_SIDE_MAX: Final = 65_535


class WindowSizeInvalid(Invalid):
    """No terminal has that size."""

    code = "window_size_invalid"


class InstanceNotFound(NotFound):
    """No instance has this name, id or id prefix."""

    code = "instance_not_found"
    remedy_default = "ramet ps -a"


class InstanceAmbiguous(Conflict):
    """Several instances' ids begin like this."""

    code = "instance_ambiguous"


class NameTaken(Conflict):
    """Another instance has this name, or is being made under it."""

    code = "name_taken"


class WrongState(Conflict):
    """The instance is not in a state that allows this."""

    code = "invalid_state"
    remedy_default = "look at its state, then ask again"


class GuestAgentSkipped(Conflict):
    """The instance was made with `skip_guest_agent`: nobody runs commands in it or copies its files."""

    code = "guest_agent_skipped"
    remedy_default = "make an instance without skip_guest_agent"


def demand_agent(record: InstanceRecord) -> None:
    """Raise GuestAgentSkipped if nobody may enter the guest of `record`."""
    if record.spec.skip_guest_agent:
        raise GuestAgentSkipped(f"instance {record.name} was made with skip_guest_agent: nobody enters it")


class DeleteIncomplete(Broken):
    """Part of an instance could not be removed; it stays held and visible."""

    code = "delete_incomplete"


class StandbyInterrupted(Conflict):
    """It was woken while it was put to sleep, and never slept."""

    code = "standby_interrupted"
    remedy_default = "put it to standby again when nobody needs it"


class HypervisorUnavailable(Unsupported):
    """This server cannot run instances of that hypervisor, or cannot any more."""

    code = "hypervisor_unavailable"


@dataclass(frozen=True, slots=True)
class ForkPoolStatus:
    """How full a pool of children made ahead is, and how it has done.

    `size` is what was asked for, `taken_count` the forks that found one, `missed_count` those that did not.
    `is_resting`: there are none because nobody forks it. `error`: why the last could not be made.
    """

    size: int
    waiting_count: int
    taken_count: int
    missed_count: int
    is_resting: bool
    error: str


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One instance as it is published: its record and, with a network, its addresses.

    `network_degraded` tells why its traffic is not limited as asked; None if it is. `fork_pool` is None where
    there is no pool, `health` where no check has found anything in this run.
    """

    record: InstanceRecord
    ip: str | None = None
    mac: str | None = None
    network_degraded: str | None = None
    fork_pool: ForkPoolStatus | None = None
    health: Health | None = None


@dataclass(frozen=True, slots=True)
class ForkOutcome:
    """What became of one child: `view` or `error`. `timings_ms` by phase, `total` among them."""

    name: str
    view: InstanceView | None
    error: RametError | None
    timings_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WaitOutcome:
    """What the instance was when the waiting ended."""

    state: State
    state_error: str
    timed_out: bool


@dataclass(frozen=True, slots=True)
class WindowSize:
    """The size of a terminal, in characters.

    Raises:
        Invalid: a side is not in 1..=WINDOW_SIDE_MAX.
    """

    rows: int
    cols: int

    def __post_init__(self) -> None:
        if not (1 <= self.rows <= WINDOW_SIDE_MAX and 1 <= self.cols <= WINDOW_SIDE_MAX):
            raise WindowSizeInvalid(
                f"{self.rows} rows and {self.cols} columns are not the size of a terminal",
                remedy=f"use 1 to {WINDOW_SIDE_MAX} for each",
            )


@dataclass(frozen=True, slots=True)
class PathStat:
    """What is at a path of a guest.

    `mode`: permission bits, 0o7777 at most. `error`: why it cannot be told; None if it exists, or if there is
    simply nothing. Where nothing is, the numbers are 0.
    """

    exists: bool
    is_dir: bool = False
    is_file: bool = False
    is_symlink: bool = False
    link_target: str | None = None
    mode: int = 0
    size_bytes: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ExecCommand:
    """A command to run in a guest. `timeout_s` 0: none. None means the workload's own.

    With a `tty` it runs on a terminal of that size, and all it writes is stdout. One that `is_ours`, such as
    a health check, does not count among those that somebody has open.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    user: str | None = None
    timeout_s: float = 0.0
    has_stdin: bool = True
    tty: WindowSize | None = None
    is_ours: bool = False


@dataclass(frozen=True, slots=True)
class ExecEnd:
    """How a command ended; exactly one of code and signal is not None."""

    code: int | None
    signal: int | None
    timed_out: bool

    @property
    def exit_code(self) -> int:
        """The code as a shell tells it: 128 + signal for a killed command, 124 after a time-out."""
        if self.timed_out:
            return 124
        return self.code if self.code is not None else 128 + (self.signal or 0)


class ExecSession(Protocol):
    """A command running in a guest. `aclose` kills it if it still runs."""

    async def write(self, data: bytes) -> None:
        """Send stdin; waits while the command does not read."""
        ...

    async def close_stdin(self) -> None: ...
    async def send_signal(self, number: int) -> None: ...

    async def resize(self, size: WindowSize) -> None:
        """Change the size of its terminal. Without effect if it has none, or has ended."""
        ...

    def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield (1, stdout bytes) and (2, stderr bytes) until the command has ended."""
        ...

    async def wait(self) -> ExecEnd:
        """Return how it ended; `output` must be consumed by somebody."""
        ...

    async def aclose(self) -> None: ...


def shell_exit_code(end: Exit) -> int:
    """Return the exit code of a workload as a shell tells it."""
    return end.code if end.code is not None else 128 + (end.signal or 0)


def exit_message(end: Exit) -> str:
    """Return in words how a workload ended, where its code does not tell: "killed by signal 9 (SIGKILL)"."""
    if end.signal is None:
        return end.message
    try:
        name = f" ({signal.Signals(end.signal).name})"
    except ValueError:  # One of those without a name.
        name = ""
    more = f" - {end.message}" if end.message else ""
    return f"killed by signal {end.signal}{name}{more}"
