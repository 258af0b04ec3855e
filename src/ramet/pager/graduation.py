"""Graduation: a guest that has run for long is given all of its memory, and then needs no pager.

Off unless it is wanted: it reads all of a base that the guest may never ask for.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import anyio

from ramet.core.errors import RametError
from ramet.pager.client import PagerClient, PagerSession, SessionPhase


@dataclass(frozen=True, slots=True)
class GraduationConfig:
    """When and how: seconds, and how many sessions at a time."""

    min_session_age_s: float = 600.0
    max_concurrent: int = 1
    scan_interval_s: float = 60.0
    completion_timeout_s: float = 600.0


@dataclass(frozen=True, slots=True)
class Graduated:
    """What became of a session: `failure` is None if its guest needs the pager no more."""

    session: str
    failure: RametError | None = None


class Graduation:
    """Knows since when each session of one pager has been serving: since it was first seen to."""

    def __init__(self, pager: PagerClient, config: GraduationConfig) -> None:
        self._pager, self._config = pager, config
        self._since: dict[str, float] = {}

    def choose(self, sessions: Iterable[PagerSession], now_s: float) -> list[str]:
        """Return the sessions to complete now, oldest first; those that are gone are forgotten."""
        served = (each for each in sessions if each.phase is SessionPhase.SERVING)
        serving = {each.id for each in served if not each.is_recording}
        self._since = {each: self._since.get(each, now_s) for each in serving}
        oldest_first = sorted(serving, key=lambda each: (self._since[each], each))
        due = [each for each in oldest_first if now_s - self._since[each] >= self._config.min_session_age_s]
        return due[: self._config.max_concurrent]

    async def scan(self, now_s: float) -> list[Graduated]:
        """Complete those that are due. One that fails goes on being served, and is due again at its age.

        Raises:
            RametError: the pager does not say which sessions it has.
        """
        found: list[Graduated] = []

        async def complete(session: str) -> None:
            try:
                await self._pager.complete_session(session, self._config.completion_timeout_s)
                found.append(Graduated(session))
            except RametError as failure:
                self._since[session] = now_s
                found.append(Graduated(session, failure))

        chosen = self.choose((await self._pager.statistics()).sessions, now_s)
        async with anyio.create_task_group() as group:
            for session in chosen:
                group.start_soon(complete, session)
        return found
