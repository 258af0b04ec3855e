"""What the daemon asks of the pager, over its control socket (docs/pager.md).

Each call is a connection of its own: half a millisecond, and a call that is cancelled leaves nothing
behind that the next one could trip over.
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, TypeVar

from ramet.core.errors import RametError
from ramet.pager.errors import (
    BaseUnusable,
    CompletionFailed,
    NoSuchSession,
    NotServing,
    OverlayUnusable,
    PagerDraining,
    PagerFailed,
    PagerRequestInvalid,
    PagerUnreachable,
    SessionExists,
    SessionsExhausted,
)

T = TypeVar("T")
E = TypeVar("E", bound=Enum)

CALL_TIMEOUT_S: Final = 5.0
COMPLETION_TIMEOUT_S: Final = 600.0
ANSWER_BYTES_MAX: Final = 2 * 1024 * 1024  # 1,024 sessions take 300 kB in the longest answer.

_ERRORS: Final[Mapping[str, type[RametError]]] = {
    "bad_request": PagerRequestInvalid,
    "base_unusable": BaseUnusable,
    "overlay_unusable": OverlayUnusable,
    "not_serving": NotServing,
    "completion_failed": CompletionFailed,
    "session_exists": SessionExists,
    "no_such_session": NoSuchSession,
    "draining": PagerDraining,
    "sessions_exhausted": SessionsExhausted,
}


class SessionPhase(Enum):
    """How far a session has come."""

    WAITING = "waiting"  # Its VMM has not connected.
    GREETING = "greeting"  # Its VMM is telling where its memory is.
    SERVING = "serving"


class BaseFormat(Enum):
    """How a base lies in its file."""

    RAW = "raw"  # As it is, with holes for zeroes.
    PACKED = "packed"  # As `ramet.pager.packed` makes it.


class WorkingSetUse(Enum):
    """What a session has to do with its base's working set: the pages a guest touches until it is ready."""

    OFF = "off"
    RECORD = "record"  # Even if there is one. Faults are answered page by page: slower, and exact.
    AUTO = "auto"  # Replay it; if there is none, and no other session is recording it, record it.


class SessionEnd(Enum):
    """Why a session is over."""

    CLOSED = "closed"
    VMM_EXITED = "vmm_exited"
    COMPLETED = "completed"  # Its VMM runs on, without the pager.
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PagerHealth:
    """What a pager says of itself."""

    version: str
    pid: int
    is_draining: bool
    session_count: int


@dataclass(frozen=True, slots=True)
class PagerSession:
    """One open session; counts are since it was opened."""

    id: str
    phase: SessionPhase
    vmm_pid: int | None
    size_bytes: int
    fault_count: int
    copied_bytes: int
    overlaid_bytes: int
    zeroed_bytes: int
    replayed_bytes: int
    """Of those above, what was there before anybody had asked for it."""
    removed_bytes: int
    deferral_count: int
    answering_us: int
    """Spent on answers to faults; `answering_us_max` on one of them."""
    answering_us_max: int
    is_recording: bool


@dataclass(frozen=True, slots=True)
class EndedSession:
    """A session that is over; `reason` is empty unless it failed."""

    id: str
    how: SessionEnd
    reason: str


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """What is kept unpacked of packed bases; counts are since the pager started."""

    size_bytes: int
    size_bytes_max: int
    window_count: int
    hit_count: int
    miss_count: int
    eviction_count: int


@dataclass(frozen=True, slots=True)
class PagerStatistics:
    """Counts since the pager started; `recent_ends` are the last few, oldest first."""

    opened_count: int
    closed_count: int
    exited_count: int
    completed_count: int
    failed_count: int
    base_count: int
    """Those that are open, used or lingering."""
    working_set_count: int
    working_set_bytes: int
    cache: CacheStatistics
    sessions: tuple[PagerSession, ...]
    recent_ends: tuple[EndedSession, ...]


class PagerClient:
    """The pager behind the unix socket `path`. Holds no connection.

    Every call raises `PagerUnreachable` if there is no answer within CALL_TIMEOUT_S seconds, and
    `PagerFailed` if the answer makes no sense; what else it raises is said there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    async def health(self) -> PagerHealth:
        """Ask whether the pager is there, and who it is."""
        answer = await self._call("health")
        return PagerHealth(
            version=_take(answer, "version", str),
            pid=_take(answer, "pid", int),
            is_draining=_take(answer, "draining", bool),
            session_count=_take(answer, "sessions", int),
        )

    async def statistics(self) -> PagerStatistics:
        """Count what the pager did."""
        answer = await self._call("stats")
        return PagerStatistics(
            opened_count=_take(answer, "opened", int),
            closed_count=_take(answer, "closed", int),
            exited_count=_take(answer, "exited", int),
            completed_count=_take(answer, "completed", int),
            failed_count=_take(answer, "failed", int),
            base_count=_take(answer, "bases", int),
            working_set_count=_take(_object(answer.get("working_sets")), "count", int),
            working_set_bytes=_take(_object(answer.get("working_sets")), "bytes", int),
            cache=_cache(answer.get("cache")),
            sessions=tuple(_session(entry) for entry in _take(answer, "sessions", list)),
            recent_ends=tuple(_ended(entry) for entry in _take(answer, "recent_ends", list)),
        )

    async def open_session(
        self,
        session_id: str,
        base: Path,
        size_bytes: int,
        *,
        base_format: BaseFormat = BaseFormat.RAW,
        overlays: Mapping[int, Path] | None = None,
        working_set: WorkingSetUse = WorkingSetUse.OFF,
    ) -> Path:
        """Open a session and return the socket that its VMM is to connect to.

        `base` holds the guest's memory of `size_bytes` bytes; it may be shorter, or have holes, which are
        zeroes, and must not change as long as the session is open.

        Args:
            overlays: pages of 4096 bytes that this session sees instead of the base's: by their offset in
                the base, each in a file of its own, which is read now and not needed afterwards.

        Raises:
            PagerRequestInvalid: the id, the size, an offset or a path is not acceptable.
            BaseUnusable: `base` cannot be opened, or is not what it should be.
            OverlayUnusable: an overlay page cannot be read, or is not one page.
            SessionExists: there is one of that id.
            SessionsExhausted: the pager serves no more.
            PagerDraining: the pager takes no new sessions.
        """
        # Not resolved: /proc/PID/fd/N is a link, but to no path.
        answer = await self._call(
            "open_session",
            id=session_id,
            base=str(base.absolute()),
            size=size_bytes,
            format=base_format.value,
            overlays=[
                {"offset": offset, "path": str(path.absolute())} for offset, path in (overlays or {}).items()
            ],
            working_set=working_set.value,
        )
        return Path(_take(answer, "socket", str))

    async def ready_session(self, session_id: str) -> int:
        """Say that a session's guest is ready: what it touched until now is its base's working set.

        Returns the number of pages recorded; 0 if the session was not recording.

        Raises:
            NoSuchSession: there is none of that id.
            NotServing: its VMM has not handed its memory over.
        """
        return _take(await self._call("ready_session", id=session_id), "recorded_pages", int)

    async def complete_session(self, session_id: str, timeout_s: float = COMPLETION_TIMEOUT_S) -> None:
        """Fill all memory of a session's VMM and leave it to the kernel; the session is over then.

        The VMM runs on meanwhile and afterwards. After any error but `NoSuchSession` the session goes on
        serving; after `PagerUnreachable` it may be completed nevertheless: ask again.

        Raises:
            NoSuchSession: there is none of that id (any more); its VMM may have exited.
            NotServing: its VMM has not handed its memory over.
            CompletionFailed: something cannot be read or filled.
        """
        await self._call("complete_session", timeout_s, id=session_id)

    async def close_session(self, session_id: str) -> bool:
        """Close a session, and kill the VMM that is being served by it; true if there was one.

        Raises:
            NoSuchSession: there is none of that id; a session ends with its VMM by itself.
        """
        return _take(await self._call("close_session", id=session_id), "vmm_ended", bool)

    async def drain(self) -> int:
        """Have the pager take no new sessions and exit after its last; return how many there are."""
        return _take(await self._call("drain"), "sessions", int)

    async def _call(
        self, op: str, timeout_s: float = CALL_TIMEOUT_S, **arguments: object
    ) -> Mapping[str, object]:
        request = json.dumps({"op": op, **arguments}).encode() + b"\n"
        try:
            async with asyncio.timeout(timeout_s):
                line = await self._exchange(request)
        except (OSError, TimeoutError) as error:
            raise PagerUnreachable(f"the pager did not answer: {error or 'time-out'}", op=op) from error
        except ValueError as error:
            raise PagerFailed(f"the pager's answer is longer than {ANSWER_BYTES_MAX} bytes", op=op) from error
        if not line.endswith(b"\n"):
            raise PagerUnreachable("the pager hung up", op=op)
        return _result(line, op)

    async def _exchange(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(self.path), limit=ANSWER_BYTES_MAX)
        try:
            writer.write(request)
            await writer.drain()
            return await reader.readline()
        finally:
            writer.close()


def _result(line: bytes, op: str) -> Mapping[str, object]:
    """Return what is "ok" in an answer, or raise what is its "error"."""
    try:
        answer = json.loads(line)
    except ValueError as error:
        raise PagerFailed("the pager's answer is not JSON", op=op) from error
    if isinstance(answer, dict) and isinstance(answer.get("ok"), dict):
        result: Mapping[str, object] = answer["ok"]
        return result
    refusal = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(refusal, dict):
        raise PagerFailed("the pager's answer is neither a result nor an error", op=op)
    code, message = _take(refusal, "code", str), _take(refusal, "message", str)
    raise _ERRORS.get(code, PagerFailed)(f"the pager refused {op}: {message}", op=op, pager_code=code)


def _take(answer: Mapping[str, object], name: str, kind: type[T]) -> T:
    value = answer.get(name)
    if not isinstance(value, kind):
        raise PagerFailed(f"the pager's answer has no {name}", field=name)
    return value


def _session(entry: object) -> PagerSession:
    fields = _object(entry)
    pid = fields.get("vmm_pid")
    return PagerSession(
        id=_take(fields, "id", str),
        phase=_member(SessionPhase, fields, "phase"),
        vmm_pid=pid if isinstance(pid, int) else None,
        size_bytes=_take(fields, "size", int),
        fault_count=_take(fields, "faults", int),
        copied_bytes=_take(fields, "copied_bytes", int),
        overlaid_bytes=_take(fields, "overlaid_bytes", int),
        zeroed_bytes=_take(fields, "zeroed_bytes", int),
        replayed_bytes=_take(fields, "replayed_bytes", int),
        removed_bytes=_take(fields, "removed_bytes", int),
        deferral_count=_take(fields, "deferrals", int),
        answering_us=_take(fields, "answering_us", int),
        answering_us_max=_take(fields, "answering_us_max", int),
        is_recording=_take(fields, "recording", bool),
    )


def _cache(entry: object) -> CacheStatistics:
    fields = _object(entry)
    return CacheStatistics(
        size_bytes=_take(fields, "bytes", int),
        size_bytes_max=_take(fields, "bytes_max", int),
        window_count=_take(fields, "windows", int),
        hit_count=_take(fields, "hits", int),
        miss_count=_take(fields, "misses", int),
        eviction_count=_take(fields, "evictions", int),
    )


def _ended(entry: object) -> EndedSession:
    fields = _object(entry)
    return EndedSession(
        id=_take(fields, "id", str),
        how=_member(SessionEnd, fields, "how"),
        reason=str(fields.get("reason") or ""),
    )


def _object(entry: object) -> Mapping[str, object]:
    if not isinstance(entry, dict):
        raise PagerFailed("the pager's answer has something else where an object should be")
    return entry


def _member(kind: type[E], fields: Mapping[str, object], name: str) -> E:
    try:
        return kind(fields.get(name))
    except ValueError as error:
        raise PagerFailed(f"the pager's answer has an unknown {name}", field=name) from error
