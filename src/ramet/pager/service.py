"""Keeps a pager there for those who load guests, and sees to what follows when there is none any more.

Without one, guests are loaded from files; so a pager that cannot be started is tried again, and logged.
"""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
import structlog

from ramet.core.errors import RametError
from ramet.pager.client import BaseFormat, PagerClient, SessionPhase, WorkingSetUse
from ramet.pager.errors import NoSuchSession, PagerFailed, PagerUnreachable
from ramet.pager.graduation import Graduation, GraduationConfig
from ramet.pager.supervisor import PagerSupervisor

RETRY_S: Final = 5.0
DRAIN_INTERVAL_S: Final = 60.0

log = structlog.get_logger(__name__)

EndStranded = Callable[[frozenset[int]], Awaitable[None]]
"""Ends the VMMs that wait for pages and whose pid is not among those given, which a pager serves."""


class PagerService:
    """The pager of a daemon.

    Args:
        folder: of all pagers of this data folder, whichever their version.
        cache_bytes_max: see `PagerSupervisor`.
        graduation: when guests are given all of their memory; None: never.
        end_stranded: called whenever a pager may have ended.
    """

    def __init__(
        self,
        folder: Path,
        program: Path,
        end_stranded: EndStranded,
        cache_bytes_max: int | None = None,
        graduation: GraduationConfig | None = None,
        retry_s: float = RETRY_S,
    ) -> None:
        self._folder, self._program, self._cache_bytes_max = folder, program, cache_bytes_max
        self._end_stranded, self._graduation, self._retry_s = end_stranded, graduation, retry_s
        self._supervisor: PagerSupervisor | None = None
        self._client: PagerClient | None = None

    @property
    def is_there(self) -> bool:
        """Whether sessions can be opened, as far as is known."""
        return self._client is not None

    async def open_session(
        self, session_id: str, base: Path, size_bytes: int, *, is_packed: bool, is_learned: bool
    ) -> Path:
        """Return the socket that a VMM is to connect to: as `PagerClient.open_session`.

        Args:
            is_learned: others will be loaded from that base, too: what this one touches until it is ready
                is noted for them, or has been for it.

        Raises:
            RametError: there is no such session.
        """
        return await self._there().open_session(
            session_id,
            base,
            size_bytes,
            base_format=BaseFormat.PACKED if is_packed else BaseFormat.RAW,
            working_set=WorkingSetUse.AUTO if is_learned else WorkingSetUse.OFF,
        )

    async def ready_session(self, session_id: str) -> None:
        """As `PagerClient.ready_session`."""
        await self._there().ready_session(session_id)

    async def close_session(self, session_id: str) -> None:
        """As `PagerClient.close_session`."""
        await self._there().close_session(session_id)

    async def start(self) -> None:
        """Start a pager or adopt the one that runs, if that is possible now. `run` sees to the rest."""
        supervisor = PagerSupervisor(self._folder, self._program, self._cache_bytes_max)
        try:
            await self._end_what_is_stranded(supervisor)
            client = await supervisor.start()
            try:
                await _close_unused(client)
            except BaseException:
                supervisor.close()
                raise
        except RametError as error:
            log.warning("pager_unavailable", error=str(error))
            return
        self._supervisor, self._client = supervisor, client
        log.info("pager_there", pid=supervisor.pid)

    async def run(self) -> None:
        """Keep a pager there, until cancelled; it goes on then."""
        try:
            while True:
                if self._supervisor is not None and self._client is not None:
                    await self._watch(self._supervisor, self._client)
                await anyio.sleep(self._retry_s)
                await self.start()
        finally:
            self._let_go()

    async def retire(self) -> None:
        """Have the guests of all pagers need them no more, since no more are wanted, and the pagers end."""
        if not self._folder.is_dir():  # There never was one.
            return
        supervisor = PagerSupervisor(self._folder, self._program)
        try:
            await self._end_what_is_stranded(supervisor)
            for client in supervisor.clients():
                await client.drain()
                for session in (await client.statistics()).sessions:
                    with suppress(NoSuchSession):  # Its guest has ended.
                        await client.complete_session(session.id)
                        log.info("session_completed", session=session.id)
        except RametError as error:  # What is left is served as before; the next start tries again.
            log.warning("pager_not_retired", error=str(error))

    def _there(self) -> PagerClient:
        if self._client is None:
            raise PagerUnreachable("there is no pager", remedy="see the daemon's log for why")
        return self._client

    def _let_go(self) -> None:
        self._client = None
        if self._supervisor is not None:
            self._supervisor.close()
            self._supervisor = None

    async def _watch(self, supervisor: PagerSupervisor, client: PagerClient) -> None:
        """Return when the pager is gone, and so are the guests that it served."""
        async with anyio.create_task_group() as group:
            group.start_soon(_drain_others, supervisor)
            if self._graduation is not None:
                group.start_soon(_graduate, Graduation(client, self._graduation), self._graduation)
            await supervisor.wait_exited()
            group.cancel_scope.cancel()
        log.error("pager_ended", pid=supervisor.pid)
        self._let_go()
        await self._end_what_is_stranded(PagerSupervisor(self._folder, self._program))

    async def _end_what_is_stranded(self, supervisor: PagerSupervisor) -> None:
        try:
            served = await supervisor.served_pids()
        except PagerFailed as error:  # Whose guests those are, nobody can say.
            log.warning("pager_silent", error=str(error))
        else:
            await self._end_stranded(served)


async def _close_unused(client: PagerClient) -> None:
    """Close the sessions whose VMM never came: their daemon ended while it loaded a guest."""
    for session in (await client.statistics()).sessions:
        if session.phase is SessionPhase.WAITING:
            await client.close_session(session.id)


async def _drain_others(supervisor: PagerSupervisor) -> None:
    while True:
        try:
            left = await supervisor.drain_others()
            if not left:
                return
        except PagerFailed as error:
            log.warning("pager_not_drained", error=str(error))
        await anyio.sleep(DRAIN_INTERVAL_S)


async def _graduate(graduation: Graduation, config: GraduationConfig) -> None:
    while True:
        await anyio.sleep(config.scan_interval_s)
        try:
            graduated = await graduation.scan(time.monotonic())
        except RametError as error:
            log.warning("sessions_not_scanned", error=str(error))
            continue
        for one in graduated:
            if one.failure is None:
                log.info("session_completed", session=one.session)
            else:
                log.warning("session_not_completed", session=one.session, error=str(one.failure))
