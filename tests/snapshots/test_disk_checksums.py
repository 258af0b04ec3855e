"""The disks of named snapshots have checksums of what they hold, not of how, which come and go with them."""

import errno
import os
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
import structlog

from ramet.core.ids import InstanceId, LayerId, SnapshotId
from ramet.core.snapshot import SnapshotKind, SnapshotRecord
from ramet.core.spec import InstanceSpec, RestorePoint
from ramet.core.verification import CHUNK_BYTES, CheckedPart, Part, Proof
from ramet.disks.layers import LayerStore
from ramet.snapshots import catalog, verifier
from ramet.snapshots.catalog import SnapshotCatalog, SnapshotNotFound
from ramet.snapshots.checksums import Found, first_difference, look_at_disk
from ramet.snapshots.store import CaptureStore
from tests.disks.test_whole_disk import command, copied
from tests.snapshots.test_compressor import Killed
from tests.snapshots.test_verifier import flip, killing
from tests.waiting import until

SNAPSHOT = SnapshotId("snapshot")
SIZE_BYTES = (8 << 20) + 512
IN_BASE, IN_BOTTOM, IN_MIDDLE, IN_TOP, AT_END = 0, 1, 3, 6, 8
"""Chunks by where they lie; the others are zeros, but not all by being nowhere."""
DATA_CHUNKS = {IN_BASE, IN_BOTTOM, IN_MIDDLE, IN_TOP, AT_END}


class Host:
    """The folders of layers, captures and snapshots, with one disk in several layers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("layers", "captures", "snapshots"):
            (folder / name).mkdir()
        with (folder / "layers" / f"ext4-{SIZE_BYTES}.raw").open("wb") as base:  # Any base will do.
            base.truncate(SIZE_BYTES)
            base.write(random.Random(1).randbytes(70_000))
        store = LayerStore(folder / "layers")
        below = layer = store.create(SIZE_BYTES)
        for commands in (
            (f"write -P 7 {IN_BOTTOM * CHUNK_BYTES + 512} 70144", f"write -P 7 {4 * CHUNK_BYTES} 1M"),
            (f"write -P 8 {IN_MIDDLE * CHUNK_BYTES} 512", f"write -P 9 {AT_END * CHUNK_BYTES} 512"),
            (f"write -P 9 {IN_TOP * CHUNK_BYTES} 1M", f"write -z {4 * CHUNK_BYTES} 1M", "write -P 0 2M 1M"),
        ):
            command(store.path(layer), *commands)
            below, layer = layer, store.create_on(layer, SIZE_BYTES)
        store.release(layer)
        self.layer = below
        self.file = folder / "snapshots" / f"{SNAPSHOT}.disk.json"

    def catalog(self) -> SnapshotCatalog:
        """Return the catalog of the next daemon."""
        self.layers = LayerStore(self.folder / "layers")
        made = SnapshotCatalog(self.folder / "snapshots", self.layers, CaptureStore(self.folder / "captures"))
        made.load()
        return made

    def where(self, chunk: int) -> tuple[Path, int]:
        """Return the file of a byte of a chunk's data, and where in it."""
        with self.layers.reader(self.layer) as disk:
            run = next(run for run in disk.runs() if run.offset // CHUNK_BYTES == chunk)
            return Path(os.readlink(f"/proc/self/fd/{run.fd}")), run.file_offset


def record(layer: LayerId) -> SnapshotRecord:
    spec = InstanceSpec("demo:1", "sha256:0", "fake", 1, 1 << 20, SIZE_BYTES)
    return SnapshotRecord(
        id=SNAPSHOT,
        name="then",
        kind=SnapshotKind.STOPPED,
        source=InstanceId("source"),
        source_name="src",
        spec=spec,
        point=RestorePoint(layer, None),
        created_at=1.0,
        memory_bytes=0,
        disk_bytes=0,
        tags={},
    )


@asynccontextmanager
async def running(snapshots: SnapshotCatalog) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        group.start_soon(snapshots.run)
        yield
        group.cancel_scope.cancel()


async def verified(snapshots: SnapshotCatalog) -> CheckedPart:
    (part,) = await snapshots.verify_disk(SNAPSHOT)
    assert part.part is Part.DISK
    return part


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "SETTLE_S", 0.0)


def look(store: LayerStore, layer: LayerId) -> Found:
    return look_at_disk([file for file, _ in store.chain(layer)])


def test_they_are_of_the_content_whichever_layers_hold_it(host: Host) -> None:
    host.catalog()
    found = look(host.layers, host.layer)
    assert (found.part, found.file, found.damage) == (Part.DISK, f"{host.layer}.qcow2", "")
    assert {index for index, one in enumerate(found.sums) if one is not None} == DATA_CHUNKS
    assert len(found.sums) == -(-SIZE_BYTES // CHUNK_BYTES)
    copy = look(host.layers, copied(host.layers, host.layer, SIZE_BYTES))
    assert copy.sums == found.sums


@pytest.mark.parametrize("chunk", [IN_BASE, IN_BOTTOM, IN_MIDDLE, IN_TOP, AT_END])
def test_a_bit_that_has_flipped_in_any_layer_names_its_chunk(host: Host, chunk: int) -> None:
    host.catalog()
    before = look(host.layers, host.layer)
    flip(*host.where(chunk))
    assert first_difference(look(host.layers, host.layer).sums, before.sums) == chunk


def test_a_layer_that_is_cut_off_or_lost_is_told(host: Host) -> None:
    host.catalog()
    files = [file for file, _ in host.layers.chain(host.layer)]
    os.truncate(files[1], 100)
    assert "cut off" in look_at_disk(files).damage
    files[1].unlink()
    assert look_at_disk(files).damage == os.strerror(errno.ENOENT)


@pytest.mark.anyio
@pytest.mark.usefixtures("at_once")
async def test_they_are_made_in_the_background_and_go_with_the_snapshot(host: Host) -> None:
    snapshots = host.catalog()
    async with running(snapshots):
        snapshots.add(record(host.layer))
        await until(host.file.exists)
        assert await verified(snapshots) == CheckedPart(
            Part.DISK,
            f"{host.layer}.qcow2",
            (await verified(snapshots)).size_bytes,
            Proof.CHECKSUMS,
        )
        file, offset = host.where(IN_MIDDLE)
        flip(file, offset)
        damaged = await verified(snapshots)
        assert (damaged.proof, bool(damaged.damage), damaged.chunk) == (Proof.CHECKSUMS, True, IN_MIDDLE)
        snapshots.delete(SNAPSHOT)
    assert not list((host.folder / "snapshots").iterdir())


@pytest.mark.anyio
async def test_who_verifies_before_has_them_made(host: Host) -> None:
    snapshots = host.catalog()
    snapshots.add(record(host.layer))
    assert ((first := await verified(snapshots)).proof, first.damage) == (Proof.READABLE, "")
    before = host.file.read_bytes()
    assert (await verified(snapshots)).proof is Proof.CHECKSUMS
    flip(*host.where(IN_TOP))
    assert (await verified(snapshots)).chunk == IN_TOP
    assert host.file.read_bytes() == before
    host.file.write_text("{}")
    (unreadable, _) = await snapshots.verify_disk(SNAPSHOT)
    assert (unreadable.file, bool(unreadable.damage)) == (host.file.name, True)
    snapshots.delete(SNAPSHOT)
    with pytest.raises(SnapshotNotFound):
        await snapshots.verify_disk(SNAPSHOT)


@pytest.mark.anyio
@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("trouble", ["damage", "loss", "full"])
async def test_what_goes_wrong_is_a_line_in_the_log(
    host: Host, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    snapshots = host.catalog()
    snapshots.add(record(host.layer))
    top = host.layers.path(host.layer)
    if trouble == "full":
        monkeypatch.setattr(verifier, "write_whole", full)
    elif trouble == "loss":
        top.unlink()
    else:
        os.truncate(top, 100)
    with structlog.testing.capture_logs() as lines:
        async with running(snapshots):
            await until(lambda: bool(lines))
    event = "checksums_not_made" if trouble == "full" else "damage_found"
    assert [(line["event"], line["of"]) for line in lines] == [(event, SNAPSHOT)]
    assert snapshots.get("then").id == SNAPSHOT
    assert not host.file.exists()


@pytest.mark.anyio
@pytest.mark.usefixtures("at_once")
async def test_nothing_is_left_of_a_snapshot_that_is_deleted_just_when_they_are_done(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshots, apart, done = host.catalog(), verifier.look_at_disk_apart, anyio.Event()

    async def look_and_delete(files: Iterable[Path]) -> list[Found]:
        found = await apart(files)
        snapshots.delete(SNAPSHOT)  # And no more chance to be cancelled before they are written.
        done.set()
        return found

    monkeypatch.setattr(catalog, "look_at_disk_apart", look_and_delete)
    async with running(snapshots):
        snapshots.add(record(host.layer))
        await done.wait()
        await anyio.wait_all_tasks_blocked()
        assert not list((host.folder / "snapshots").iterdir())


@pytest.mark.anyio
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["look_at_disk_apart", "write_whole"])
async def test_a_daemon_killed_at_any_step_leaves_all_or_none_and_the_next_makes_them(
    host: Host, monkeypatch: pytest.MonkeyPatch, at_once: None, step: str, when: str
) -> None:
    module = catalog if step == "look_at_disk_apart" else verifier

    snapshots = host.catalog()
    snapshots.add(record(host.layer))
    with monkeypatch.context() as patched:
        patched.setattr(module, step, killing(getattr(module, step), when))
        with pytest.raises(BaseExceptionGroup) as caught:
            async with running(snapshots):
                await anyio.sleep_forever()
    assert caught.group_contains(Killed)
    assert host.file.exists() is (step == "write_whole" and when == "after")
    snapshots = host.catalog()
    async with running(snapshots):
        await until(host.file.exists)
    assert (await verified(snapshots)).proof is Proof.CHECKSUMS


def test_what_a_killed_daemon_left_of_a_deleted_snapshot_is_removed(host: Host) -> None:
    snapshots = host.catalog()
    snapshots.add(record(host.layer))
    host.file.write_text("these stay")
    for name in ("gone.disk.json", "gone.disk.json.part"):
        (host.folder / "snapshots" / name).write_text("{}")
    assert [found.id for found in host.catalog().list()] == [SNAPSHOT]
    assert {path.name for path in (host.folder / "snapshots").iterdir()} == {
        f"{SNAPSHOT}.json",
        host.file.name,
    }
