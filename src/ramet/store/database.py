"""Records and journal, in one SQLite file.

Called inline on the event loop: a write costs tens of microseconds (WAL, synchronous NORMAL). After a power
cut the last transactions may be missing, which reconcile mends from the host, as nothing of a host survives a
power cut but files; a killed daemon loses none.

The journal says what is being made or unmade: an entry is written before the first host resource of an
operation exists and removed, in one transaction with the record, when all of it is owned or gone.

On a full disk, too, what has happened must be written, and what is deleted to make room forgotten. So room
is reserved in the write-ahead log, which SQLite never cuts while it is open.
"""

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ramet.core.errors import Broken
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord

SCHEMA_VERSION: Final = 1
RESERVE_BYTES: Final = 8 << 20
"""Twice what SQLite writes to the log before it begins at its front again; some hundred operations."""

_SCHEMA: Final = """
CREATE TABLE instances (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, record TEXT NOT NULL) STRICT;
CREATE TABLE journal (
    id INTEGER PRIMARY KEY AUTOINCREMENT, operation TEXT NOT NULL, instance TEXT NOT NULL, facts TEXT NOT NULL
) STRICT;
"""


_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_UNREADABLE_REMEDY: Final = (
    "restore the file, or move it and its -wal and -shm away: it is made again from the instances' folders"
)


class StateUnreadable(Broken):
    """The state file is damaged, or of a newer version of ramet."""

    code = "state_unreadable"


class StateUnwritable(Broken):
    """The state file takes no more: the disk is full, or failing."""

    code = "state_unwritable"


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """An operation that was begun and not ended. `facts` names host resources, JSON-able."""

    id: int
    operation: str
    instance: InstanceId
    facts: Mapping[str, object]


class Database:
    """The open state file.

    Raises, on construction:
        StateUnreadable: it cannot be used; it is left as it is.

    Every call raises `StateUnwritable` where the file cannot be read or written, and `StateUnreadable` where
    it is found damaged; nothing was changed then.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._connection = sqlite3.connect(path, isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            version = self._connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                with self.transaction():
                    for statement in filter(str.strip, _SCHEMA.split(";")):
                        self._connection.execute(statement)
                    self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise StateUnreadable(f"{path} is of version {version}, this ramet knows {SCHEMA_VERSION}")
        except sqlite3.DatabaseError as error:
            raise StateUnreadable(f"{path}: {error}", remedy=_UNREADABLE_REMEDY) from error
        self._reserve()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of what is written inside is there afterwards, or none of it. Nests."""
        is_nested = self._connection.in_transaction
        if is_nested:
            yield
            return
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
            self._execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # A full disk may have ended it already.
                self._connection.rollback()
            raise

    def load(self) -> list[InstanceRecord]:
        """Return all records.

        Raises:
            StateUnreadable: one of them does not parse; it is named.
        """
        records = []
        for instance, text in self._execute("SELECT id, record FROM instances ORDER BY rowid"):
            try:
                records.append(InstanceRecord.from_json(text))
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise StateUnreadable(
                    f"{self._path}: the record of instance {instance} is damaged", remedy=_UNREADABLE_REMEDY
                ) from error
        return records

    def save(self, record: InstanceRecord) -> None:
        """Insert or replace a record."""
        self._execute(
            "INSERT INTO instances VALUES (?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET name = excluded.name, record = excluded.record",
            (record.id, record.name, record.to_json()),
        )

    def forget(self, instance: InstanceId) -> None:
        """Remove a record; harmless if there is none."""
        self._execute("DELETE FROM instances WHERE id = ?", (instance,))

    def begin(self, operation: str, instance: InstanceId, **facts: object) -> int:
        """Write a journal entry; returns its id."""
        cursor = self._execute(
            "INSERT INTO journal (operation, instance, facts) VALUES (?, ?, ?)",
            (operation, instance, json.dumps(facts)),
        )
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def end(self, entry: int) -> None:
        """Remove a journal entry; harmless if it is gone."""
        self._execute("DELETE FROM journal WHERE id = ?", (entry,))

    def unfinished(self) -> list[JournalEntry]:
        """Return the journal, oldest first.

        Raises:
            StateUnreadable: an entry does not parse; it is named.
        """
        entries = []
        for entry, operation, instance, text in self._execute(
            "SELECT id, operation, instance, facts FROM journal ORDER BY id"
        ):
            try:
                facts = json.loads(text)
            except (ValueError, TypeError, RecursionError):
                facts = None
            if not isinstance(facts, dict):
                raise StateUnreadable(
                    f"{self._path}: entry {entry} of the journal is damaged", remedy=_UNREADABLE_REMEDY
                )
            entries.append(JournalEntry(entry, operation, InstanceId(instance), facts))
        return entries

    def _reserve(self) -> None:
        """Have the log take its room on the disk now; zeros after its end mean nothing to SQLite."""
        with suppress(OSError):  # Full already, or not a disk that can: then what is there has to do.
            log = os.open(f"{self._path}-wal", os.O_RDWR | os.O_CLOEXEC)
            try:
                os.posix_fallocate(log, 0, RESERVE_BYTES)
            finally:
                os.close(log)

    def _execute(self, statement: str, parameters: tuple[object, ...] = ()) -> sqlite3.Cursor:
        try:
            return self._connection.execute(statement, parameters)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", None) in _DAMAGED:
                raise StateUnreadable(f"{self._path}: {error}", remedy=_UNREADABLE_REMEDY) from error
            raise StateUnwritable(
                f"the state file {self._path} cannot be used: {error}", remedy="make room on its disk"
            ) from error

    def close(self) -> None:
        self._connection.close()
