"""What requests that carry an idempotency key were answered, in an SQLite file of its own.

Called inline on the event loop, as `ramet.store.database`. Nothing else depends on this file: if it is
damaged, it is begun anew, and a request that was answered before may be done again.
"""

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

import structlog

from ramet.core.answers import Answer, Asked
from ramet.store.database import StateUnwritable

KEPT_S: Final = 24 * 3600.0
"""How long an answer is kept."""
ANSWER_COUNT_MAX: Final = 10_000
"""How many are; then the oldest goes first, and what was never answered last."""
BYTES_MAX: Final = 256 << 20
"""How large all bodies may be together; likewise."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, request TEXT NOT NULL, at REAL NOT NULL,
    status INTEGER, content_type TEXT, body BLOB
) STRICT;
CREATE INDEX IF NOT EXISTS answers_at ON answers (at);
CREATE INDEX IF NOT EXISTS answers_to_go ON answers (status IS NULL, at);
"""

log = structlog.get_logger(__name__)


class AnswerStore:
    """The open file; None keeps everything in memory. `now` returns Unix seconds.

    Every call raises `StateUnwritable` where the file cannot be read or written.
    """

    def __init__(self, path: Path | None = None, now: Callable[[], float] = time.time) -> None:
        self._now = now
        try:
            self._connection = _open(path)
        except sqlite3.DatabaseError as error:
            if path is None:
                raise
            log.warning("answers_lost", path=str(path), error=str(error))
            for suffix in ("", "-wal", "-shm"):
                Path(f"{path}{suffix}").unlink(missing_ok=True)
            self._connection = _open(path)
        ((self._size_bytes,),) = self._execute("SELECT coalesce(sum(length(body)), 0) FROM answers")

    def find(self, key: str) -> Asked | None:
        """Return what came with a key; None if nothing did, or it was too long ago."""
        row = self._execute(
            "SELECT request, status, content_type, body FROM answers WHERE key = ? AND at > ?",
            (key, self._now() - KEPT_S),
        ).fetchone()
        if row is None:
            return None
        request, status, content_type, body = row
        return Asked(request, None if status is None else Answer(status, content_type, body))

    def begin(self, key: str, request: str) -> None:
        """Write down that a request is being done; nothing may have come with its key."""
        self._prune()
        self._execute("INSERT INTO answers (key, request, at) VALUES (?, ?, ?)", (key, request, self._now()))

    def keep(self, key: str, answer: Answer) -> None:
        """Write down the answer to a request that was begun, if there was room to remember that."""
        kept = self._execute(
            "UPDATE answers SET status = ?, content_type = ?, body = ? WHERE key = ?",
            (answer.status, answer.content_type, answer.body, key),
        )
        self._size_bytes += kept.rowcount * len(answer.body)

    def forget(self, key: str) -> None:
        """Have a request never have been: nothing was done."""
        self._delete("WHERE key = ?", key)

    def close(self) -> None:
        self._connection.close()

    def _prune(self) -> None:
        self._delete("WHERE at <= ?", self._now() - KEPT_S)
        ((count,),) = self._execute("SELECT count(*) FROM answers")
        if count >= ANSWER_COUNT_MAX:
            self._delete_oldest(count - ANSWER_COUNT_MAX + 1)
        while self._size_bytes > BYTES_MAX:
            self._delete_oldest(max(1, count // 10))

    def _delete_oldest(self, count: int) -> None:
        # What has no answer may be under way, and would be done twice.
        self._delete("WHERE key IN (SELECT key FROM answers ORDER BY status IS NULL, at LIMIT ?)", count)

    def _delete(self, where: str, parameter: object) -> None:
        statement = f"DELETE FROM answers {where} RETURNING length(body)"  # Ours.
        self._size_bytes -= sum(size or 0 for (size,) in self._execute(statement, (parameter,)).fetchall())

    def _execute(self, statement: str, parameters: tuple[object, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._connection.execute(statement, parameters)
        except sqlite3.Error as error:
            raise StateUnwritable(
                f"the file of kept answers cannot be used: {error}", remedy="make room on its disk"
            ) from error


def _open(path: Path | None) -> sqlite3.Connection:
    # Used by one thread, which need not be the one that opens it.
    connection = sqlite3.connect(
        ":memory:" if path is None else path, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        with closing(connection.cursor()) as cursor:
            cursor.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection
