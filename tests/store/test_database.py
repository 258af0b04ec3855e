"""Records and journal survive, or say why they do not."""

import os
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from ramet.core.ids import CaptureId, InstanceId, LayerId, mint_id
from ramet.core.spec import Exit, InstanceIdentity, InstanceRecord, InstanceSpec, Runtime, State
from ramet.store.database import RESERVE_BYTES, Database, StateUnreadable


def make_record(name: str = "web") -> InstanceRecord:
    spec = InstanceSpec("alpine", "sha256:0", "qemu", 1, 1 << 28, 1 << 30, {"A": "b"}, None, ("sh", "-c"))
    identity = InstanceIdentity(InstanceId(mint_id()), name, 7, "0" * 32, 1.5)
    runtime = Runtime(12, 34, "boot", {"memory_bytes": 5})
    return InstanceRecord(
        spec, identity, State.RUNNING, LayerId("l"), CaptureId("c"), runtime, Exit(7), generation=3
    )


def test_a_record_reads_back_equal(tmp_path: Path) -> None:
    record = make_record()
    Database(tmp_path / "s.db").save(record)
    assert Database(tmp_path / "s.db").load() == [record]


def test_saving_again_replaces(tmp_path: Path) -> None:
    database, record = Database(tmp_path / "s.db"), make_record()
    database.save(record)
    database.save(replace(record, state=State.STOPPED))
    assert [r.state for r in database.load()] == [State.STOPPED]
    database.forget(record.id)
    assert database.load() == []


def test_a_failed_transaction_leaves_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "s.db")

    def fail_halfway() -> None:
        with database.transaction():
            database.save(make_record())
            database.begin("create", InstanceId("i"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert database.load() == []
    assert database.unfinished() == []


def test_the_journal_tells_what_was_begun(tmp_path: Path) -> None:
    database = Database(tmp_path / "s.db")
    first = database.begin("create", InstanceId("a"), slot=2)
    database.begin("capture", InstanceId("b"), layer="x")
    database.end(first)
    [entry] = Database(tmp_path / "s.db").unfinished()
    assert (entry.operation, entry.instance, entry.facts) == ("capture", "b", {"layer": "x"})


def test_a_damaged_record_is_named_and_not_skipped(tmp_path: Path) -> None:
    database, record = Database(tmp_path / "s.db"), make_record()
    database.save(record)
    database._connection.execute("UPDATE instances SET record = '{}'")
    with pytest.raises(StateUnreadable, match=record.id):
        database.load()


def test_a_file_of_another_kind_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "s.db").write_bytes(b"not a database, " * 100)
    with pytest.raises(StateUnreadable):
        Database(tmp_path / "s.db")
    assert (tmp_path / "s.db").read_bytes().startswith(b"not a database")


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    Database(tmp_path / "s.db")._connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StateUnreadable, match="99"):
        Database(tmp_path / "s.db")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    options = f"size={2 * RESERVE_BYTES}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a disk")
def test_a_full_disk_holds_up_no_record(small_disk: Path) -> None:
    database, record = Database(small_disk / "s.db"), make_record()
    with (small_disk / "ballast").open("wb") as file:
        free = os.statvfs(small_disk)
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
    for generation in range(100):
        entry = database.begin("make", record.id)
        with database.transaction():
            database.save(replace(record, generation=generation))
            database.end(entry)
    (small_disk / "ballast").unlink()
    database.close()
    database = Database(small_disk / "s.db")
    assert (database.load(), database.unfinished()) == ([replace(record, generation=99)], [])


def test_the_reserve_of_a_killed_daemon_is_not_taken_for_content(tmp_path: Path) -> None:
    database, record = Database(tmp_path / "s.db"), make_record()
    database.save(record)
    for name in ("s.db", "s.db-wal"):  # As a kill leaves them; closing would tidy up.
        (tmp_path / f"killed-{name}").write_bytes((tmp_path / name).read_bytes())
    assert (tmp_path / "killed-s.db-wal").stat().st_size >= RESERVE_BYTES
    (tmp_path / "killed-s.db-wal").rename(tmp_path / "killed.db-wal")
    (tmp_path / "killed-s.db").rename(tmp_path / "killed.db")
    found = Database(tmp_path / "killed.db")
    assert found.load() == [record]
    found.save(replace(record, generation=9))
    assert [each.generation for each in found.load()] == [9]


@pytest.mark.parametrize("facts", ["{", "[]", "null", "7", "[" * 100_000, ""])
def test_a_damaged_journal_entry_is_named_and_not_skipped(tmp_path: Path, facts: object) -> None:
    database = Database(tmp_path / "s.db")
    entry = database.begin("create", InstanceId("a"))
    with sqlite3.connect(tmp_path / "s.db") as rows:
        rows.execute("UPDATE journal SET facts = ?", (facts,))
    rows.close()
    with pytest.raises(StateUnreadable, match=f"entry {entry} of the journal") as caught:
        database.unfinished()
    assert caught.value.remedy


def test_a_file_damaged_behind_its_head_is_told_as_damaged_and_not_as_full(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with closing(Database(path)) as database:
        database.save(make_record())
    content = path.read_bytes()
    page_bytes = int.from_bytes(content[16:18])
    path.write_bytes(content[:page_bytes] + b"\xff" * (len(content) - page_bytes))
    with pytest.raises(StateUnreadable, match="malformed") as caught, closing(Database(path)) as database:
        database.load()
    assert "restore" in caught.value.remedy
