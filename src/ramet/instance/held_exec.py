"""Commands in guests whose client may leave and come back.

A session's output is read all the time. The last of it is kept, so that whoever comes back, having told how
much it has, is given the rest. While somebody is attached, a command that writes faster than that is made to
wait, as ever; while nobody is, the oldest is dropped. A session to which nobody comes back in time is ended,
and one that has ended is there as long, for a client whose connection broke just then.
"""

import asyncio
import time
from bisect import bisect_right
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from operator import itemgetter
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup

from ramet.core.errors import Conflict, Exhausted, Invalid, NotFound, RametError
from ramet.core.ids import InstanceId, mint_id
from ramet.instance.fleet_types import ExecCommand, ExecEnd, ExecSession, WindowSize

KEEP_S_DEFAULT: Final = 600.0
KEEP_S_MAX: Final = 24 * 3600.0
OUTPUT_BYTES_MAX: Final = 1 << 20
"""How much of a session's output is kept."""
PIECE_BYTES: Final = 128
"""What a piece of it takes besides its bytes, about."""
SESSION_COUNT_MAX: Final = 512
"""How many sessions there are at most, of all instances.

One whose end was told makes room, or else one that broke.
"""

log = structlog.get_logger(__name__)


class ExecNotFound(NotFound):
    """No session of this instance has this id, or its time was up."""

    code = "exec_session_not_found"
    remedy_default = "look at those there are, or start the command anew"


class TooManyExecs(Exhausted):
    """There are as many sessions as there may be."""

    code = "too_many_exec_sessions"
    remedy_default = "end some, or come back when their time is up"


class ExecTaken(Conflict):
    """Somebody else has attached to the session: one can be at a time."""

    code = "exec_session_taken"
    remedy_default = "attach again, if it is yours"


class HeldExec:
    """One session. `position` counts what its command has written: bytes, of both streams together."""

    def __init__(
        self, instance: InstanceId, command: ExecCommand, session: ExecSession, keep_s: float
    ) -> None:
        self.id = mint_id()
        self.instance, self.command = instance, command
        self.started_at = time.time()
        self.has_stdin = command.has_stdin
        self.position = 0
        self.current: ExecView | None = None
        """Who is attached."""
        self.end: ExecEnd | None = None
        self.failure: RametError | None = None
        self.is_told = False
        """Somebody has been told how it ended."""
        self.is_dropped = False
        self.session = session
        self._keep_s = keep_s
        self._kept: list[tuple[int, int, bytes]] = []  # Where it begins, stream, bytes.
        self._kept_bytes = 0
        self._furthest = 0  # As far as who is attached has been told.
        self._untold_bytes = 0  # What the kept pieces behind that take.
        self._changed = asyncio.Event()

    @property
    def exit_code(self) -> int | None:
        """How it ended, as a shell tells it; None while it runs, or if nobody knows."""
        return None if self.end is None else self.end.exit_code

    @property
    def is_over(self) -> bool:
        return self.end is not None or self.failure is not None

    def view(self, since: int) -> "ExecView":
        """Return a view of it from position `since` on; whoever was attached before is not any more.

        Raises:
            Invalid: it has not written so much.
        """
        if not 0 <= since <= self.position:
            raise Invalid(f"since is {since}, and there are {self.position} bytes of output", field="since")
        self.current = ExecView(self, since)
        self._furthest = self.current.position
        self._untold_bytes = sum(
            _taken_bytes(data) for begin, _, data in self._kept if begin + len(data) > self._furthest
        )
        self.change()
        return self.current

    async def run(self) -> None:
        """Read its output, and end it when nobody has been attached for too long."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._read)
            while not self.is_dropped:
                if self.current is not None:
                    await self.changed()
                    continue
                with anyio.move_on_after(self._keep_s):
                    while self.current is None and not self.is_dropped:
                        await self.changed()
                if self.current is None:
                    log.info("exec_session_left", instance=self.instance, session=self.id)
                    break
            group.cancel_scope.cancel()

    def drop(self) -> None:
        """Have it end, whoever is attached."""
        self.is_dropped = True
        self.change()

    async def changed(self) -> None:
        """Return when anything of it is another than now."""
        await self._changed.wait()

    def change(self) -> None:
        """Wake whoever waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    def first_position(self) -> int:
        """Return where what is kept begins."""
        return self._kept[0][0] if self._kept else self.position

    def read(self, position: int) -> tuple[int, bytes] | None:
        """Return stream and bytes of a piece that begins at `position`; None if there is none yet."""
        if not self.first_position() <= position < self.position:
            return None
        begin, stream, data = self._kept[bisect_right(self._kept, position, key=itemgetter(0)) - 1]
        if begin + len(data) > self._furthest:
            self._furthest = begin + len(data)
            self._untold_bytes -= _taken_bytes(data)
        return stream, data[position - begin :]

    async def _read(self) -> None:
        try:
            async for stream, data in self.session.output():
                await self._keep(stream, data)
            self.end = await self.session.wait()
        except RametError as error:
            self.failure = error
        finally:
            with anyio.CancelScope(shield=True):
                await self.session.aclose()
        self.change()

    async def _keep(self, stream: int, data: bytes) -> None:
        self._kept.append((self.position, stream, data))
        self.position += len(data)
        self._kept_bytes += _taken_bytes(data)
        self._untold_bytes += _taken_bytes(data)
        self.change()
        # What is dropped is in the older half, at most: whoever is attached has been told of it.
        while self.current is not None and self._untold_bytes > OUTPUT_BYTES_MAX // 2:
            await self.changed()
        if self._kept_bytes > OUTPUT_BYTES_MAX:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        """Keep three quarters of what may be kept, at most, but the last piece in any case."""
        count = 0
        while self._kept_bytes > OUTPUT_BYTES_MAX * 3 // 4 and count < len(self._kept) - 1:
            self._kept_bytes -= _taken_bytes(self._kept[count][2])
            count += 1
        del self._kept[:count]


class ExecView:
    """An `ExecSession` that shows a held one from a position on. To close it is to leave the command alone.

    `position` is where it begins, `missed_bytes` how much of what was asked for is not kept any more.
    """

    def __init__(self, held: HeldExec, since: int) -> None:
        self.position = max(since, held.first_position())
        self.missed_bytes = self.position - since
        self._held = held

    async def write(self, data: bytes) -> None:
        """Send `data` to its stdin.

        Raises:
            Invalid: that was ended, by somebody else who was attached.
        """
        if not self._held.has_stdin:
            raise Invalid("There is no stdin to send to: it was not asked for, or was ended before")
        await self._held.session.write(data)

    async def close_stdin(self) -> None:
        self._held.has_stdin = False
        await self._held.session.close_stdin()

    async def send_signal(self, number: int) -> None:
        await self._held.session.send_signal(number)

    async def resize(self, size: WindowSize) -> None:
        await self._held.session.resize(size)

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield stream and bytes until the command has ended.

        Raises:
            ExecTaken: somebody else has attached.
        """
        position = self.position
        while True:
            if self._held.current is not self:
                raise ExecTaken("somebody else has attached to this exec session")
            position = max(position, self._held.first_position())
            found = self._held.read(position)
            if found is not None:
                self._held.change()  # It may have been waiting for us.
                yield found
                position += len(found[1])
            elif self._held.is_over:
                return
            else:
                await self._held.changed()

    async def wait(self) -> ExecEnd:
        """Return how it ended.

        Raises:
            RametError: it broke.
        """
        self._held.is_told = True
        if self._held.failure is not None:
            raise self._held.failure
        assert self._held.end is not None, "its output has ended"
        return self._held.end

    async def aclose(self) -> None:
        if self._held.current is self:
            self._held.current = None
            self._held.change()


class HeldExecs:
    """All sessions of one daemon that clients may leave; start them inside `running`."""

    def __init__(self) -> None:
        self._sessions: dict[str, HeldExec] = {}
        self._coming_count = 0
        """Sessions that are just being started: each has its place already."""
        self._group: TaskGroup | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep sessions inside; at the end all are ended."""
        async with anyio.create_task_group() as self._group:
            yield
            self._group.cancel_scope.cancel()

    def list(self, instance: InstanceId) -> list[HeldExec]:
        """Return the sessions of an instance, oldest first."""
        return [session for session in self._sessions.values() if session.instance == instance]

    def get(self, instance: InstanceId, session: str) -> HeldExec:
        """Return one session.

        Raises:
            ExecNotFound
        """
        found = self._sessions.get(session)
        if found is None or found.instance != instance:
            raise ExecNotFound(f"there is no exec session {session[:40]!r} of this instance, or not any more")
        return found

    async def start(
        self,
        instance: InstanceId,
        command: ExecCommand,
        open_session: Callable[[], Awaitable[ExecSession]],
        keep_s: float,
    ) -> HeldExec:
        """Start a command by `open_session`, and keep it for `keep_s` seconds whenever nobody is attached.

        Raises:
            TooManyExecs
            RametError: it cannot be started.
        """
        assert self._group is not None, "it does not run"
        self._make_room()
        self._coming_count += 1
        try:
            held = HeldExec(instance, command, await open_session(), keep_s)
        finally:
            self._coming_count -= 1
        self._sessions[held.id] = held
        self._group.start_soon(self._run, held)
        return held

    def _make_room(self) -> None:
        if len(self._sessions) + self._coming_count < SESSION_COUNT_MAX:
            return
        left = [one for one in self._sessions.values() if one.current is None]
        # Whose guest is gone, nobody may be able to come back to.
        over = [one for one in left if one.is_told] or [one for one in left if one.failure is not None]
        if not over:
            raise TooManyExecs(f"there are {SESSION_COUNT_MAX} exec sessions")
        del self._sessions[over[0].id]
        over[0].drop()

    async def _run(self, held: HeldExec) -> None:
        try:
            await held.run()
        finally:
            self._sessions.pop(held.id, None)


def _taken_bytes(piece: bytes) -> int:
    return len(piece) + PIECE_BYTES
