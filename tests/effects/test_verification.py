"""A snapshot says what of it is damaged, and never anything else."""

import os
from pathlib import Path
from typing import NoReturn

import anyio
import pytest

from ramet.core.snapshot import SnapshotKind
from ramet.core.verification import CHUNK_BYTES, Part, Proof
from ramet.snapshots import catalog, verifier
from ramet.snapshots.catalog import SnapshotNotFound
from tests.effects.world import Daemon, World
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.netns]


async def take(daemon: Daemon, kind: SnapshotKind = SnapshotKind.STANDBY) -> Path:
    """Take a snapshot "then" of "src"; returns the folder of its memory, or of all if it has none."""
    await daemon.fleet.create("src", daemon.spec)
    await daemon.run("src", "set", "when", "then")
    if kind is SnapshotKind.STOPPED:
        await daemon.fleet.stop("src")
    snapshot = await daemon.snapshots.create("src", kind, "then", {})
    return daemon.site.folder.captures / (snapshot.point.capture or "")


def flip(file: Path, offset: int) -> None:
    file.chmod(0o600)
    with file.open("r+b") as opened:
        byte = os.pread(opened.fileno(), 1, offset)
        os.pwrite(opened.fileno(), bytes([byte[0] ^ 1]), offset)


def checksums_of(daemon: Daemon, ref: str) -> Path:
    """Return where those of the disk of a snapshot lie."""
    return daemon.site.folder.snapshots / f"{daemon.snapshots.get(ref).id}.disk.json"


async def test_a_whole_snapshot_is_whole_and_a_flipped_bit_is_found(world: World) -> None:
    async with world.daemon() as daemon:
        folder = await take(daemon)
        first = await daemon.snapshots.verify("then")
        assert (first.is_whole, first.checksums) == (True, "made")
        second = await daemon.snapshots.verify("then")
        assert (second.is_whole, second.checksums) == (True, "compared")
        proofs = {part.part: part.proof for part in second.parts}
        assert proofs == {
            Part.MEMORY: Proof.CHECKSUMS,
            Part.DEVICES: Proof.CHECKSUMS,
            Part.DISK: Proof.CHECKSUMS,
        }
        assert all(part.size_bytes > 0 for part in second.parts)
        flip(folder / "ramet-memory", (folder / "ramet-memory").stat().st_size - 1)
        third = await daemon.snapshots.verify("then")
        (broken,) = [part for part in third.parts if part.damage]
        size_bytes = (folder / "ramet-memory").stat().st_size
        assert (broken.part, broken.chunk) == (Part.MEMORY, (size_bytes - 1) // CHUNK_BYTES)
        await daemon.snapshots.delete("then")
        await daemon.fleet.delete("src")
    assert not list(world.folder.rglob("*checksums.json"))
    assert not list(world.folder.rglob("*.disk.json"))


async def test_what_sleeps_shares_the_checksums_of_its_snapshot_and_they_outlive_the_daemon(
    world: World,
) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.fleet.standby("src")
        await daemon.snapshots.create("src", SnapshotKind.STANDBY, "then", {})
        await daemon.snapshots.verify("then")
    async with world.daemon() as daemon:
        assert (await daemon.snapshots.verify("then")).checksums == "compared"
        await daemon.fleet.restore("src")
        assert (await daemon.snapshots.verify("then")).is_whole


async def test_a_disk_alone_is_compared_too(world: World) -> None:
    async with world.daemon() as daemon:
        await take(daemon, SnapshotKind.STOPPED)
        found = await daemon.snapshots.verify("then")
        assert (found.is_whole, found.checksums) == (True, "made")
        (disk,) = found.parts
        layer = daemon.snapshots.get("then").point.layer
        assert (disk.part, disk.file, disk.proof) == (Part.DISK, f"{layer}.qcow2", Proof.READABLE)
        assert (await daemon.snapshots.verify("then")).checksums == "compared"
        base = daemon.site.layers.base(layer)
        flip(base, 1024)  # The fake's guests write nothing: all there is lies in the base. Its superblock.
        (disk,) = (await daemon.snapshots.verify("then")).parts
        assert (disk.proof, bool(disk.damage), disk.chunk) == (Proof.CHECKSUMS, True, 0)
        flip(base, 1024)
        file = daemon.site.layers.path(layer)
        os.truncate(file, 100)
        assert [part.part for part in (await daemon.snapshots.verify("then")).parts if part.damage] == [
            Part.DISK
        ]


@pytest.mark.parametrize("kind", SnapshotKind)
async def test_the_next_daemon_makes_those_of_disks_that_are_missing(
    world: World, monkeypatch: pytest.MonkeyPatch, kind: SnapshotKind
) -> None:
    monkeypatch.setattr(verifier, "SETTLE_S", 3600.0)
    async with world.daemon() as daemon:
        await take(daemon, kind)
        file = checksums_of(daemon, "then")
        assert not file.exists()
    monkeypatch.setattr(verifier, "SETTLE_S", 0.0)
    async with world.daemon() as daemon:
        await until(file.exists)
        (disk,) = [part for part in (await daemon.snapshots.verify("then")).parts if part.part is Part.DISK]
        assert (disk.proof, disk.damage) == (Proof.CHECKSUMS, "")
        await daemon.snapshots.delete("then")
        assert not list(file.parent.iterdir())


async def test_what_is_imported_gets_its_own_which_are_those_of_where_it_came_from(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "SETTLE_S", 0.0)
    async with world.daemon() as daemon:
        await take(daemon, SnapshotKind.STOPPED)
        async with daemon.snapshots.export("then") as chunks:
            made = await daemon.snapshots.import_file(chunks, "again")
        one, other = (checksums_of(daemon, ref) for ref in ("then", made.id))
        await until(lambda: one.exists() and other.exists())
        assert one.read_bytes() == other.read_bytes()
        assert (await daemon.snapshots.verify(made.id)).checksums == "compared"


async def test_a_snapshot_that_is_deleted_or_forked_waits_for_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = anyio.Event(), anyio.Event()

    async def endless(_: object) -> NoReturn:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()
        raise AssertionError

    monkeypatch.setattr(verifier, "SETTLE_S", 0.0)
    monkeypatch.setattr(catalog, "look_at_disk_apart", endless)
    async with world.daemon() as daemon:
        await take(daemon)
        await begun.wait()
        (outcome,) = await daemon.snapshots.fork("then", ["child"])
        assert outcome.error is None
        assert not ended.is_set()
        await daemon.snapshots.delete("then")
        await ended.wait()
        assert not list((world.folder / "data" / "snapshots").iterdir())


async def test_a_part_that_is_lost_is_told(world: World) -> None:
    async with world.daemon() as daemon:
        folder = await take(daemon)
        (folder / "manifest.json").rename(folder / "elsewhere")
        found = await daemon.snapshots.verify("then")
        assert [(part.part, bool(part.damage)) for part in found.parts] == [(Part.MEMORY, True)]
        (folder / "elsewhere").rename(folder / "manifest.json")
        layer = daemon.site.layers.path(daemon.snapshots.get("then").point.layer)
        layer.rename(layer.with_suffix(".elsewhere"))
        found = await daemon.snapshots.verify("then")
        assert [(part.part, bool(part.damage)) for part in found.parts] == [(Part.DISK, True)]
        layer.with_suffix(".elsewhere").rename(layer)
        with pytest.raises(SnapshotNotFound):
            await daemon.snapshots.verify("nobody")
