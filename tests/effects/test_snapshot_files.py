"""A snapshot comes out of its file as it went in, or not at all, and then nothing of it is left."""

import hashlib
import json
import random
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import anyio
import pytest

from ramet.core.errors import Invalid, RametError
from ramet.core.ids import SnapshotId, mint_id
from ramet.core.snapshot import SnapshotKind, SnapshotRecord
from ramet.core.spec import RestorePoint, State
from ramet.disks.qcow2 import CLUSTER_BYTES
from ramet.effects.snapshot_files import SnapshotImageDiffers
from ramet.effects.snapshots import NamedSnapshots
from ramet.images.errors import ImageNotFound
from ramet.snapshots.catalog import SnapshotCatalog, SnapshotNameTaken
from ramet.snapshots.export_file import (
    CHECKSUMS,
    END,
    MANIFEST,
    BadExport,
    checksums,
    entry_header,
    padding,
)
from tests.effects.test_standby import settled
from tests.effects.world import Daemon, World

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

Change = Callable[[dict[str, Any]], None]


async def exported(daemon: Daemon, ref: str) -> bytes:
    async with daemon.snapshots.export(ref) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def chunks_of(data: bytes, size_bytes: int = 50_000) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), size_bytes):
        yield data[begin : begin + size_bytes]


async def imported(daemon: Daemon, data: bytes, name: str | None = None) -> SnapshotRecord:
    return await daemon.snapshots.import_file(chunks_of(data), name)


async def keep(world: World, daemon: Daemon, kind: SnapshotKind) -> bytes:
    """Return the file of a snapshot "then", of an instance "src" that is gone, as is the snapshot."""
    await daemon.fleet.create("src", daemon.spec)
    await daemon.run("src", "set", "when", "then")
    if kind is SnapshotKind.STOPPED:
        await daemon.fleet.stop("src")
    await daemon.snapshots.create("src", kind, "then", {"of": "test"})
    data = await exported(daemon, "then")
    await daemon.fleet.delete("src")
    await daemon.snapshots.delete("then")
    await settled(world, captures=0, layers=0)
    return data


def split(data: bytes) -> list[tuple[str, bytes]]:
    """Return the entries of a file."""
    entries, at = [], 0
    while data[at]:
        name = data[at : at + 100].rstrip(b"\0").decode()
        size = int(data[at + 124 : at + 135], 8)
        entries.append((name, data[at + 512 : at + 512 + size]))
        at += 512 + size + -size % 512
    return entries


def content(data: bytes) -> dict[str, dict[int, bytes]]:
    """Return the pages of each part of a file that are not all zeros."""
    found: dict[str, dict[int, bytes]] = {}
    for name, part in split(data)[1:-1]:
        pages, at = found.setdefault(name, {}), 0
        while at < len(part):
            offset, length = struct.unpack_from(">QI", part, at)
            for begin in range(0, length, 4096):
                page = part[at + 12 + begin : at + 12 + min(begin + 4096, length)]
                if any(page):
                    pages[offset + begin] = page
            at += 12 + length
    return found


def joined(entries: list[tuple[str, bytes]]) -> bytes:
    """Return a file of entries, with checksums that are right."""
    sums = {name: hashlib.sha256(body).hexdigest() for name, body in entries}
    whole = [*entries, (CHECKSUMS, checksums(sums))]
    return b"".join(entry_header(name, len(body)) + body + padding(len(body)) for name, body in whole) + END


@pytest.mark.parametrize("kind", SnapshotKind)
async def test_memory_comes_back_as_it_was_under_a_new_id(world: World, kind: SnapshotKind) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        data = await keep(world, daemon, kind)
        await settled(world, captures=0, layers=0, snapshots=0)
        made = await imported(daemon, data)
        assert (made.name, made.source_name, made.kind, made.tags) == ("then", "src", kind, {"of": "test"})
        assert (made.memory_bytes > 0) is (kind is SnapshotKind.STANDBY)
    async with world.daemon() as daemon:
        assert daemon.snapshots.list() == [made]
        (outcome,) = await daemon.snapshots.fork("then", ["child"])
        assert outcome.view is not None, outcome.error
        await daemon.fleet.bring_to("child", State.RUNNING)
        memory = await daemon.memory("child")
        assert memory["variables"] == ({"when": "then"} if kind is SnapshotKind.STANDBY else {})
        assert memory["hostname"] == "child"
        await daemon.fleet.delete("child")
        assert content(await exported(daemon, made.id)) == content(data)
        await daemon.snapshots.delete(made.id)
        await settled(world, captures=0, layers=0, snapshots=0)
        assert world.leftovers() == before


async def test_every_byte_of_a_disk_comes_back_whatever_layers_it_lay_in(world: World) -> None:
    """With layers of real data, which the fake's guests do not write."""
    async with world.daemon() as daemon:
        layers, size_bytes = daemon.site.layers, daemon.spec.overlay_bytes
        content = bytearray(size_bytes)
        with layers.draft(size_bytes) as draft:
            for at in (0, 3 * CLUSTER_BYTES, size_bytes - CLUSTER_BYTES):
                content[at : at + CLUSTER_BYTES] = random.Random(at).randbytes(CLUSTER_BYTES)
                draft.write(at, bytes(content[at : at + CLUSTER_BYTES]))
            draft.finish()
            layers.adopt(draft)
        await daemon.fleet.create("src", daemon.spec)
        await daemon.fleet.stop("src")
        record = await daemon.snapshots.create("src", SnapshotKind.STOPPED, "then", {})
        top = layers.create_on(draft.id, size_bytes)
        catalog = SnapshotCatalog(daemon.site.folder.snapshots, layers, daemon.site.captures)
        point = RestorePoint(top, None)
        catalog.add(replace(record, id=SnapshotId(mint_id()), name="real", point=point))
        pools = daemon.fleet._host.pools  # type: ignore[attr-defined]
        snapshots = NamedSnapshots(daemon.site, catalog, daemon.fleet, pools)
        async with snapshots.export("real") as chunks:
            data = b"".join([chunk async for chunk in chunks])
        assert len(data) < 4 * CLUSTER_BYTES + (64 << 10), "what is zeros takes no room"
        made = await imported(daemon, data)
        with layers.reader(made.point.layer) as reader:
            found = bytearray(size_bytes)
            for run in reader.runs():
                found[run.offset : run.offset + run.length_bytes] = run.read(0, run.length_bytes)
        assert found == content


async def test_a_file_that_is_cut_or_changed_anywhere_leaves_nothing(world: World) -> None:
    chance = random.Random(4)
    async with world.daemon() as daemon:
        data = await keep(world, daemon, SnapshotKind.STANDBY)
        before = world.leftovers()
        heads = [data.index(name.encode()) for name, _ in split(data)]
        places = {0, 1, 511, 512, len(data) - 1, len(data) - 1025, *heads, *(at + 515 for at in heads)}
        places |= {chance.randrange(len(data)) for _ in range(60)}
        for place in sorted(places):
            flipped = bytearray(data)
            flipped[place] ^= 1 << chance.randrange(8)
            for wrong in (data[:place], bytes(flipped)):
                # The image it names is looked for before the last checksum is there to be compared.
                with pytest.raises((BadExport, SnapshotImageDiffers, ImageNotFound)) as caught:
                    await imported(daemon, wrong)
                assert caught.value.remedy
        with pytest.raises(BadExport):
            await imported(daemon, data + b"\0")
        assert daemon.snapshots.list() == []
        await settled(world, captures=0, layers=0)
        assert world.leftovers() == before
        await imported(daemon, data)


def _of_spec(name: str, value: object) -> Change:
    return lambda manifest: manifest["spec"].update({name: value})


def _of_mount(name: str, value: object) -> Change:
    mount = {"volume": "data", "path": "/data", "is_read_only": True, "overlay_part": None, name: value}
    return _of_spec("volumes", [mount])


def _of_part(part: str, name: str, value: int) -> Change:
    return lambda manifest: manifest[part].update({name: value})


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest.update(schema=2),
        lambda manifest: manifest.update(name="../etc"),
        lambda manifest: manifest.update(source="../../instances"),
        lambda manifest: manifest.update(source_name="a b"),
        lambda manifest: manifest.update(kind="Stopped"),
        lambda manifest: manifest.update(created_at=float("1e300")),
        lambda manifest: manifest.update(tags={"key": "\x1b[2J"}),
        lambda manifest: manifest.update(memory=None),
        lambda manifest: manifest.pop("spec"),
        _of_spec("image_digest", "demo:1"),
        _of_spec("hypervisor", "../fake"),
        _of_spec("memory_bytes", 1 << 50),
        _of_spec("overlay_bytes", 1 << 50),
        _of_spec("overlay_parts", [-1, 1]),
        _of_mount("volume", "../../instances"),
        _of_mount("path", "/proc"),
        _of_mount("overlay_part", 0),
        _of_spec("vcpu_count", 0),
        _of_spec("cmd", ["a\0b"]),
        _of_spec("compression", {"how": {"algorithm": "zstd", "level": 20}, "is_said": True}),
        _of_spec("compression", {"delay_s": -1.0}),
        _of_part("disk", "size_bytes", 1 << 50),
        _of_part("disk", "packed_bytes", 1 << 50),
        _of_part("memory", "packed_bytes", -1),
        _of_part("devices", "size_bytes", 1 << 40),
    ],
)
async def test_a_manifest_that_no_export_writes_is_refused(world: World, change: Change) -> None:
    async with world.daemon() as daemon:
        (_, text), *parts, _ = split(await keep(world, daemon, SnapshotKind.STANDBY))
        before = world.leftovers()
        manifest = json.loads(text)
        change(manifest)
        with pytest.raises(BadExport) as caught:
            await imported(daemon, joined([(MANIFEST, json.dumps(manifest).encode()), *parts]))
        assert caught.value.remedy
        await settled(world, captures=0, layers=0)
        assert world.leftovers() == before


@pytest.mark.parametrize(
    ("offset", "length"),
    [(1 << 50, 4096), (0, 0), (0, (1 << 32) - 1), (1, 4096), (0, 4095), (2**64 - 4096, 8192)],
)
async def test_a_piece_that_lies_where_none_may_is_refused(world: World, offset: int, length: int) -> None:
    async with world.daemon() as daemon:
        data = await keep(world, daemon, SnapshotKind.STANDBY)
        before = world.leftovers()
        for part in ("disk", "memory"):
            entries = dict(split(data))
            del entries[CHECKSUMS]
            entries[part] = struct.pack(">QI", offset, length) + entries[part][12:]
            with pytest.raises(BadExport):
                await imported(daemon, joined(list(entries.items())))
        await settled(world, captures=0, layers=0)
        assert world.leftovers() == before


async def test_other_entries_names_and_orders_are_refused(world: World) -> None:
    async with world.daemon() as daemon:
        *entries, _ = split(await keep(world, daemon, SnapshotKind.STANDBY))
        assert await imported(daemon, joined(entries), "as-is")
        manifest, disk, memory, devices = entries
        wrong = [
            [manifest, ("../../state.db", disk[1]), memory, devices],
            [manifest, memory, disk, devices],
            [manifest, disk, memory],
            [*entries, ("more", b"")],
            [disk, manifest],
            [],
        ]
        for archive in wrong:
            with pytest.raises(BadExport):
                await imported(daemon, joined(archive))
        for data in (b"", b"no tar" * 1000):
            with pytest.raises(BadExport):
                await imported(daemon, data)


async def test_a_name_is_taken_once_and_can_be_another(world: World) -> None:
    async with world.daemon() as daemon:
        data = await keep(world, daemon, SnapshotKind.STOPPED)
        await imported(daemon, data)
        with pytest.raises(SnapshotNameTaken):
            await imported(daemon, data)
        with pytest.raises(Invalid):
            await imported(daemon, data, "not/a/name")
        assert (await imported(daemon, data, "again")).name == "again"


async def test_without_its_image_a_snapshot_does_not_come_and_hears_which(world: World) -> None:
    async with world.daemon() as daemon:
        *entries, _ = split(await keep(world, daemon, SnapshotKind.STANDBY))
        manifest = json.loads(entries[0][1])
        for field, value, error in (
            ("spec", {**manifest["spec"], "image_digest": "sha256:" + "0" * 64}, ImageNotFound),
            ("rootfs_sha256", "0" * 64, SnapshotImageDiffers),
        ):
            text = json.dumps({**manifest, field: value}).encode()
            with pytest.raises(error) as caught:
                await imported(daemon, joined([(MANIFEST, text), *entries[1:]]))
            assert isinstance(caught.value, RametError)
            if error is ImageNotFound:
                pinned = "docker.io/library/demo@sha256:" + "0" * 64
                assert caught.value.remedy == f"get it first: ramet pull {pinned}"
        assert daemon.snapshots.list() == []
        await settled(world, captures=0, layers=0)


async def test_a_snapshot_that_is_deleted_while_it_is_exported_comes_out_whole(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.snapshots.create("src", SnapshotKind.STANDBY, "then", {})
        async with daemon.snapshots.export("then") as chunks:
            await daemon.fleet.delete("src")
            await daemon.snapshots.delete("then")
            data = b"".join([chunk async for chunk in chunks])
        await settled(world, captures=0, layers=0)
        await imported(daemon, data)
        (outcome,) = await daemon.snapshots.fork("then", ["child"])
        assert outcome.error is None


async def test_an_import_that_is_given_up_leaves_nothing(world: World) -> None:
    async with world.daemon() as daemon:
        data = await keep(world, daemon, SnapshotKind.STANDBY)
        before = world.leftovers()
        is_waiting = anyio.Event()

        async def stalled() -> AsyncIterator[bytes]:
            yield data[:-1]
            is_waiting.set()
            await anyio.sleep_forever()

        async with anyio.create_task_group() as group:
            group.start_soon(daemon.snapshots.import_file, stalled())
            await is_waiting.wait()
            group.cancel_scope.cancel()
        await settled(world, captures=0, layers=0)
        assert world.leftovers() == before
        await imported(daemon, data)
