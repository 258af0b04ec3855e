"""Volumes of a daemon on a real disk: kept, counted, lent to instances, and never shared by two who write."""

import io
import shutil
import tarfile
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import anyio
import anyio.to_thread
import pytest

from ramet.admission.demand import Resource
from ramet.admission.ledger import InsufficientResources, Limit
from ramet.core.errors import Invalid
from ramet.core.ids import VolumeId
from ramet.core.snapshot import SnapshotKind
from ramet.core.spec import State
from ramet.core.volumes import GIB, InvalidMount, MountTaken, VolumeMount, VolumeNotAttached, VolumeWritable
from ramet.effects import volumes as effects_volumes
from ramet.effects.counting import SiteResources
from ramet.instance.events import AttachAsked, DetachAsked
from ramet.instance.fleet_types import WrongState
from ramet.snapshots.store import Draft
from ramet.vmm.port import VmmFailed
from ramet.volumes.errors import (
    ArchiveInvalid,
    ArchiveTooLarge,
    VolumeInUse,
    VolumeNameTaken,
    VolumeNotFound,
    VolumeQuotaReached,
    VolumeUnwritable,
)
from tests.effects.world import Daemon, World

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

MIB = 1 << 20


def packed(content: bytes = b"content") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("file")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


async def in_pieces(content: bytes, size_bytes: int = 1000) -> AsyncIterator[bytes]:
    for offset in range(0, len(content), size_bytes):
        yield content[offset : offset + size_bytes]


def held_bytes(daemon: Daemon) -> int:
    return daemon.site.admission.ledger.total_of(Resource.DISK)


def mount(volume: VolumeId, path: str = "/data", **how: object) -> VolumeMount:
    return VolumeMount(volume, path, **how)  # type: ignore[arg-type]


async def create(daemon: Daemon, name: str, *mounts: VolumeMount, parts: tuple[int, ...] = ()) -> None:
    spec = replace(daemon.spec, volumes=mounts, overlay_parts=parts)
    assert (await daemon.fleet.create(name, spec)).record.state is State.RUNNING


async def test_a_volume_outlives_daemons_is_counted_and_goes_whole(world: World) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        empty = await daemon.volumes.create("empty", GIB, {"of": "test"})
        filled = await daemon.volumes.create("filled", 2 * GIB, {}, "own", in_pieces(packed()))
        assert held_bytes(daemon) == 3 * GIB
        assert {path.name for path in (daemon.site.folder.volumes / "own").iterdir()} == {
            "data.raw",
            "volume.json",
        }
        used = await SiteResources(daemon.site).disk_use()
        assert 0 < used.volume_bytes < 64 * MIB
    async with world.daemon() as daemon:
        assert daemon.volumes.list() == [empty, filled]
        assert daemon.volumes.list({"of": "test"}) == [empty]
        assert held_bytes(daemon) == 3 * GIB
        for ref in ("empty", "own"):
            await daemon.volumes.delete(ref)
        assert held_bytes(daemon) == 0
        with pytest.raises(VolumeNotFound):
            daemon.volumes.get("own")
        assert world.leftovers() == before


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"no archive" * 300, ArchiveInvalid),
        (packed(bytes(range(256)) * 9000), ArchiveTooLarge),
        (b"x" * (3 * MIB), ArchiveTooLarge),
    ],
)
async def test_of_one_that_cannot_be_filled_nothing_is_left(
    world: World, content: bytes, error: type[Invalid]
) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        with pytest.raises(error):
            await daemon.volumes.create("data", 2 * MIB, {}, archive=in_pieces(content))
        assert world.leftovers() == before
        assert held_bytes(daemon) == 0
        await daemon.volumes.create("data", GIB, {})  # Its name is free.


async def test_of_one_whose_sender_goes_away_nothing_is_left(world: World) -> None:
    async def breaking() -> AsyncIterator[bytes]:
        yield packed()[:20]
        raise Invalid("the archive is cut", remedy="send it again")

    async def endless() -> AsyncIterator[bytes]:
        yield packed()[:20]
        await anyio.sleep_forever()

    async with world.daemon() as daemon:
        before = world.leftovers()
        with pytest.raises(Invalid, match="is cut"):
            await daemon.volumes.create("data", GIB, {}, archive=breaking())
        async with anyio.create_task_group() as group:
            group.start_soon(daemon.volumes.create, "data", GIB, {}, None, endless())
            while world.leftovers() == before:
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        assert world.leftovers() == before
        assert held_bytes(daemon) == 0


async def test_its_room_is_taken_until_its_files_are_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    removing, may_go = threading.Event(), threading.Event()
    remove = shutil.rmtree

    def slowly(folder: Path) -> None:
        removing.set()
        assert may_go.wait(20)
        remove(folder)

    async with world.daemon() as daemon:
        await daemon.volumes.create("data", GIB, {}, "data")
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", slowly)
            async with anyio.create_task_group() as group:
                group.start_soon(daemon.volumes.delete, "data")
                await anyio.to_thread.run_sync(removing.wait)
                assert held_bytes(daemon) == GIB
                may_go.set()
        assert held_bytes(daemon) == 0


async def test_one_whose_files_cannot_be_removed_takes_its_room_until_the_next_start(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.daemon() as daemon:
        await daemon.volumes.create("data", GIB, {}, "data")
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", Mock(side_effect=OSError("the disk refuses")))
            await daemon.volumes.delete("data")
        assert daemon.volumes.list() == []
        assert held_bytes(daemon) == GIB
        with pytest.raises(VolumeNameTaken):
            await daemon.volumes.create("other", GIB, {}, "data")
    async with world.daemon() as daemon:
        assert held_bytes(daemon) == 0
        await daemon.volumes.create("data", GIB, {}, "data")


async def test_what_is_left_of_one_is_removed_beside_the_loop(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    removing = list[threading.Thread]()
    remove = shutil.rmtree

    def noted(folder: Path, ignore_errors: bool = False) -> None:
        removing.append(threading.current_thread())
        remove(folder, ignore_errors=ignore_errors)

    async with world.daemon() as daemon:
        monkeypatch.setattr(shutil, "rmtree", noted)
        with pytest.raises(ArchiveTooLarge):
            await daemon.volumes.create("data", 2 * MIB, {}, archive=in_pieces(b"x" * (3 * MIB)))
        assert removing
        assert threading.main_thread() not in removing


async def test_there_must_be_room_for_all_that_it_may_come_to_hold(world: World) -> None:
    async with world.daemon() as daemon:
        daemon.site.admission.ledger.limit(Limit(Resource.DISK, 3 * GIB))
        await daemon.volumes.create("one", 2 * GIB, {})
        with pytest.raises(InsufficientResources, match="volume two"):
            await daemon.volumes.create("two", 2 * GIB, {})
        assert [record.name for record in daemon.volumes.list()] == ["one"]
        assert held_bytes(daemon) == 2 * GIB


async def test_one_that_cannot_be_made_is_not_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        with monkeypatch.context() as patch:
            failing = Mock(side_effect=VolumeUnwritable("the disk is full"))
            patch.setattr(effects_volumes, "make_file_system", failing)
            for archive in (None, in_pieces(packed())):
                with pytest.raises(VolumeUnwritable):
                    await daemon.volumes.create("data", GIB, {}, archive=archive)
        assert world.leftovers() == before
        assert held_bytes(daemon) == 0


async def test_a_daemon_that_dies_while_one_is_made_leaves_nothing_to_the_next(world: World) -> None:
    async with world.daemon() as daemon:
        folder = daemon.site.folder.volumes / "half"
        folder.mkdir()
        (folder / "data.raw").write_bytes(b"some")
        (folder / "tree").mkdir()
        (folder / "tree/file").write_bytes(b"some")
    async with world.daemon() as daemon:
        assert daemon.volumes.list() == []
        assert world.leftovers()["volumes"] == set()


async def test_one_writes_or_many_read_also_after_a_restart(world: World) -> None:
    async with world.daemon() as daemon:
        data = (await daemon.volumes.create("data", GIB, {})).id
        shared = (await daemon.volumes.create("shared", GIB, {})).id
        reading = mount(shared, "/shared", is_read_only=True)
        await create(daemon, "writer", mount(data), reading)
    async with world.daemon() as daemon:
        for how in (mount(data), mount(data, is_read_only=True)):
            with pytest.raises(VolumeInUse, match="instance writer"):
                await create(daemon, "other", how)
        with pytest.raises(VolumeNotFound):
            await create(daemon, "other", mount(VolumeId("nothing")))
        await create(daemon, "other", reading)
        with pytest.raises(VolumeInUse):
            await create(daemon, "third", mount(shared))
        assert [view.record.name for view in daemon.fleet.list()] == ["writer", "other"]
        assert {attached.path for attached in daemon.volumes.attachments(shared).values()} == {"/shared"}
        for ref in ("data", "shared"):
            with pytest.raises(VolumeInUse):
                await daemon.volumes.delete(ref)
        await daemon.fleet.delete("writer")
        await daemon.fleet.delete("other")
        assert daemon.volumes.attachments(shared) == {}
        for ref in ("data", "shared"):
            await daemon.volumes.delete(ref)


async def test_an_instance_that_cannot_be_made_has_no_volume(world: World) -> None:
    async with world.daemon() as daemon:
        data = (await daemon.volumes.create("data", GIB, {})).id
        daemon.faults.fail("boot", VmmFailed("it did not start"))
        with pytest.raises(VmmFailed):
            await create(daemon, "web", mount(data))
        assert daemon.volumes.attachments(data) == {}
        await create(daemon, "web", mount(data))


async def test_volumes_are_given_and_taken_while_an_instance_is_stopped(world: World) -> None:
    async with world.daemon() as daemon:
        data, more = [(await daemon.volumes.create(name, GIB, {})).id for name in ("data", "more")]
        await create(daemon, "web")
        for state in (State.RUNNING, State.STANDBY):
            assert daemon.fleet.get("web").record.state is state
            with pytest.raises(WrongState, match="ramet stop web"):
                await daemon.fleet.change_volumes("web", AttachAsked(mount(data)))
            if state is State.RUNNING:
                await daemon.fleet.standby("web")
        await daemon.fleet.restore("web")
        await daemon.fleet.stop("web")
        await daemon.fleet.change_volumes("web", AttachAsked(mount(data)))
        for refused in (mount(data, "/other"), mount(more)):
            with pytest.raises(MountTaken):
                await daemon.fleet.change_volumes("web", AttachAsked(refused))
        with pytest.raises(InvalidMount):
            await daemon.fleet.change_volumes("web", AttachAsked(mount(more, "/proc/x")))
        await create(daemon, "other", mount(more))
        with pytest.raises(VolumeInUse):
            await daemon.fleet.change_volumes("web", AttachAsked(mount(more, "/more")))
        assert [each.volume for each in daemon.fleet.get("web").record.spec.volumes] == [data]
    async with world.daemon() as daemon:
        assert list(daemon.volumes.attachments(data)) == [daemon.fleet.get("web").record.id]
        await daemon.fleet.start("web")
        with pytest.raises(WrongState):
            await daemon.fleet.change_volumes("web", DetachAsked(data))
        await daemon.fleet.stop("web")
        with pytest.raises(VolumeNotAttached):
            await daemon.fleet.change_volumes("web", DetachAsked(more))
        await daemon.fleet.change_volumes("web", DetachAsked(data))
        assert daemon.volumes.attachments(data) == {}
        await daemon.fleet.start("web")


async def test_who_writes_to_one_has_no_copies_and_no_snapshot_with_memory(world: World) -> None:
    async with world.daemon() as daemon:
        data = (await daemon.volumes.create("data", GIB, {})).id
        await create(daemon, "web", mount(data))
        with pytest.raises(VolumeWritable):
            await daemon.fleet.set_fork_pool("web", 1)
        for state in (State.RUNNING, State.STANDBY, State.STOPPED):
            await daemon.fleet.bring_to("web", state) if state is not State.STOPPED else None
            with pytest.raises(VolumeWritable):
                await daemon.fleet.fork("web", ["kid"])
            if state is State.RUNNING:
                with pytest.raises(VolumeWritable):
                    await daemon.snapshots.create("web", SnapshotKind.STANDBY, None, {})
                await daemon.fleet.standby("web")
            elif state is State.STANDBY:
                with pytest.raises(VolumeWritable):
                    await daemon.snapshots.create("web", SnapshotKind.STANDBY, None, {})
                await daemon.fleet.restore("web")
                await daemon.fleet.stop("web")
        kept = await daemon.snapshots.create("web", SnapshotKind.STOPPED, None, {})
        (outcome,) = await daemon.snapshots.fork(kept.id, ["kid"])
        assert isinstance(outcome.error, VolumeWritable)
        # Its own disk goes back; what it is given is as it is now.
        await daemon.fleet.change_volumes("web", DetachAsked(data))
        await daemon.snapshots.restore("web", kept.id, target=State.RUNNING)
        assert daemon.fleet.get("web").record.spec.volumes == ()
        await daemon.volumes.delete("data")
        assert [view.record.name for view in daemon.fleet.list()] == ["web"]


async def test_who_reads_is_forked_and_a_snapshot_of_it_has_the_volume_stay(world: World) -> None:
    async with world.daemon() as daemon:
        data = (await daemon.volumes.create("data", GIB, {})).id
        await create(daemon, "web", mount(data, is_read_only=True))
        (outcome,) = await daemon.fleet.fork("web", ["kid"])
        assert outcome.error is None
        assert len(daemon.volumes.attachments(data)) == 2
        await daemon.fleet.standby("kid")
        await daemon.fleet.restore("kid")
        kept = await daemon.snapshots.create("web", SnapshotKind.STANDBY, "kept", {})
        for name in ("web", "kid"):
            await daemon.fleet.delete(name)
    async with world.daemon() as daemon:
        with pytest.raises(VolumeInUse, match="snapshot kept"):
            await create(daemon, "writer", mount(data))
        with pytest.raises(VolumeInUse, match="snapshot kept"):
            await daemon.volumes.delete("data")
        (outcome,) = await daemon.snapshots.fork(kept.id, ["kid"])
        assert outcome.error is None
        assert len(daemon.volumes.attachments(data)) == 1
        await daemon.fleet.delete("kid")
        await daemon.snapshots.delete(kept.id)
        await daemon.volumes.delete("data")


async def test_a_volume_stays_while_a_snapshot_that_needs_it_is_made_and_its_source_goes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured, may_go_on = anyio.Event(), anyio.Event()
    commit = Draft.commit

    async def slowly(draft: Draft) -> None:
        captured.set()
        await may_go_on.wait()
        await commit(draft)

    async with world.daemon() as daemon:
        data = (await daemon.volumes.create("data", GIB, {})).id
        await create(daemon, "web", mount(data, is_read_only=True))
        monkeypatch.setattr(Draft, "commit", slowly)
        async with anyio.create_task_group() as group:
            group.start_soon(daemon.snapshots.create, "web", SnapshotKind.STANDBY, "kept", {})
            await captured.wait()
            await daemon.fleet.stop("web")
            await daemon.fleet.change_volumes("web", DetachAsked(data))
            with pytest.raises(VolumeInUse, match="snapshot kept"):
                await daemon.volumes.delete("data")
            may_go_on.set()
        (outcome,) = await daemon.snapshots.fork("kept", ["kid"])
        assert outcome.error is None
        await daemon.fleet.delete("kid")
        await daemon.snapshots.delete("kept")
        await daemon.volumes.delete("data")


async def test_a_snapshot_that_could_not_be_made_keeps_no_volume(world: World) -> None:
    async with world.daemon() as daemon:
        data = (await daemon.volumes.create("data", GIB, {})).id
        await create(daemon, "web", mount(data, is_read_only=True))
        daemon.faults.fail("save_devices", VmmFailed("on demand"))
        with pytest.raises(VmmFailed):
            await daemon.snapshots.create("web", SnapshotKind.STANDBY, "kept", {})
        await daemon.fleet.delete("web")
        await daemon.volumes.delete("data")


async def test_an_overlay_is_a_part_of_the_instance_s_own_disk(world: World) -> None:
    async with world.daemon() as daemon:
        data = (await daemon.volumes.create("data", GIB, {})).id
        own = mount(data, is_read_only=True, overlay_part=0)
        await create(daemon, "web", own, parts=(64 * MIB,))
        view = daemon.fleet.get("web")
        assert view.record.layer is not None
        base = daemon.site.layers.base(view.record.layer)
        assert base.stat().st_size == daemon.spec.overlay_bytes + 64 * MIB
        (outcome,) = await daemon.fleet.fork("web", ["kid"])
        assert outcome.view is not None
        assert outcome.view.record.spec.overlay_parts == (64 * MIB,)
        await daemon.fleet.stop("kid")
        await daemon.fleet.change_volumes("kid", DetachAsked(data))
        assert daemon.fleet.get("kid").record.spec.overlay_parts == (64 * MIB,)
        await daemon.fleet.start("kid")


async def test_one_whose_files_are_lost_does_not_keep_an_instance_from_going_on_without(
    world: World, tmp_path: Path
) -> None:
    async with world.daemon() as daemon:
        data = (await daemon.volumes.create("data", GIB, {})).id
        await create(daemon, "web", mount(data))
        await daemon.fleet.stop("web")
        (daemon.site.folder.volumes / data).rename(tmp_path / "away")
    async with world.daemon() as daemon:
        with pytest.raises(VolumeNotFound):
            await daemon.fleet.start("web")
        await daemon.fleet.change_volumes("web", DetachAsked(data))
        await daemon.fleet.start("web")


async def test_all_volumes_together_are_no_larger_than_they_may_be(world: World) -> None:
    async with world.daemon() as daemon:
        volumes = effects_volumes.SiteVolumes(daemon.site, storage_bytes_max=10 * MIB)
        first = await volumes.create("first", 4 * MIB, {})
        before = held_bytes(daemon)
        refused = list[VolumeQuotaReached]()

        async def create(name: str) -> None:
            try:
                await volumes.create(name, 4 * MIB, {})
            except VolumeQuotaReached as error:
                refused.append(error)

        async with anyio.create_task_group() as group:  # What is only being made counts, too.
            group.start_soon(create, "second")
            group.start_soon(create, "third")
        (error,) = refused
        assert (error.code, error.fields) == (
            "volume_quota_reached",
            {"limit_bytes": 10 * MIB, "used_bytes": 8 * MIB},
        )
        assert len(volumes.list()) == 2
        assert held_bytes(daemon) == before + 4 * MIB
        await volumes.delete(first.id)
        await volumes.create("fourth", 6 * MIB, {})
