"""A volume is there as a whole or not at all, and nobody loses one that somebody has."""

from dataclasses import replace
from pathlib import Path

import pytest

from ramet.core.ids import CaptureId, InstanceId, LayerId, SnapshotId, VolumeId
from ramet.core.snapshot import SnapshotKind, SnapshotRecord
from ramet.core.spec import InstanceIdentity, InstanceRecord, InstanceSpec, RestorePoint, State
from ramet.core.volumes import VolumeMount, VolumeRecord
from ramet.volumes.catalog import DATA_FILE, MANIFEST_FILE, VolumeCatalog
from ramet.volumes.errors import (
    VolumeAmbiguous,
    VolumeBroken,
    VolumeInUse,
    VolumeNameTaken,
    VolumeNotFound,
    VolumeUnclean,
    VolumeUnwritable,
)
from ramet.volumes.filesystem import make_file_system

INCOMPATIBLE_OFFSET = 1024 + 0x60
NEEDS_RECOVERY = 0x4
SPEC = InstanceSpec("image", "sha256:0", "qemu", 1, 1, 1)


def volume(name: str, number: int = 0, **fields: object) -> VolumeRecord:
    record = VolumeRecord(VolumeId(f"{name}-id"), name, 1 << 30, float(number), {"of": name})
    return replace(record, **fields)  # type: ignore[arg-type]


def add(catalog: VolumeCatalog, record: VolumeRecord) -> VolumeId:
    with catalog.coming(record) as folder:
        make_file_system(folder / DATA_FILE, record.size_bytes)
        catalog.add(record)
    return record.id


def instance(name: str, *mounts: VolumeMount) -> InstanceRecord:
    identity = InstanceIdentity(InstanceId(name), name, None, "0", 0.0)
    return InstanceRecord(replace(SPEC, volumes=mounts), identity, State.STOPPED)


def snapshot(kind: SnapshotKind, *mounts: VolumeMount) -> SnapshotRecord:
    capture = CaptureId("memory") if kind is SnapshotKind.STANDBY else None
    point = RestorePoint(LayerId("layer"), capture)
    spec = replace(SPEC, volumes=mounts)
    return SnapshotRecord(SnapshotId("snap"), None, kind, InstanceId("i"), "i", spec, point, 0.0, 0, 0)


@pytest.fixture
def catalog(tmp_path: Path) -> VolumeCatalog:
    (tmp_path / "volumes").mkdir()
    return VolumeCatalog(tmp_path / "volumes")


def loaded(catalog: VolumeCatalog) -> VolumeCatalog:
    """Return what a daemon that starts finds."""
    return VolumeCatalog.open(catalog.folder_of(VolumeId("any")).parent)


def test_what_was_made_is_found_again_and_half_made_ones_are_not(catalog: VolumeCatalog) -> None:
    second, first = add(catalog, volume("second", 2)), add(catalog, volume("first", 1))
    half = catalog.folder_of(VolumeId("half"))
    half.mkdir()
    (half / DATA_FILE).write_bytes(b"some")
    (half.parent / "stray").write_bytes(b"file")
    again = loaded(catalog)
    assert [record.id for record in again.list()] == [first, second]
    assert again.get("first").tags == {"of": "first"}
    assert {path.name for path in half.parent.iterdir()} == {first, second}


def test_one_is_found_by_id_name_or_a_beginning_that_only_it_has(catalog: VolumeCatalog) -> None:
    one, two = add(catalog, volume("data-one")), add(catalog, volume("data-two"))
    for ref in (one, "data-one", "data-o"):
        assert catalog.get(ref).id == one
    with pytest.raises(VolumeAmbiguous):
        catalog.get("data-")
    for ref in ("", "none"):
        with pytest.raises(VolumeNotFound):
            catalog.get(ref)
    assert [record.id for record in catalog.list({"of": "data-two"})] == [two]


def test_neither_name_nor_id_is_given_twice_even_while_one_is_made(catalog: VolumeCatalog) -> None:
    with catalog.coming(volume("data")):
        for other in (volume("data", id=VolumeId("x")), volume("x", id=VolumeId("data-id"))):
            with pytest.raises(VolumeNameTaken), catalog.coming(other):
                pass
    add(catalog, volume("data"))  # The first never came.
    with pytest.raises(VolumeNameTaken):
        add(catalog, volume("other", id=VolumeId("data")))


def test_of_one_that_cannot_be_made_nothing_is_left(catalog: VolumeCatalog) -> None:
    record = volume("data")
    with catalog.coming(record) as folder:
        (folder / DATA_FILE).write_bytes(b"some")
    assert not folder.exists()
    with catalog.coming(record) as folder:
        (folder / MANIFEST_FILE).mkdir()  # In the way of the manifest.
        with pytest.raises(VolumeUnwritable):
            catalog.add(record)
    assert not folder.exists()
    assert catalog.list() == []


def test_a_manifest_that_cannot_be_read_is_an_error_and_nothing_is_removed(catalog: VolumeCatalog) -> None:
    data, other = add(catalog, volume("data")), add(catalog, volume("other"))
    manifest = catalog.folder_of(data) / MANIFEST_FILE
    for text in ("{", "{}", volume("other").to_json()):
        manifest.write_text(text)
        with pytest.raises(VolumeBroken):
            loaded(catalog)
        assert (catalog.folder_of(data) / DATA_FILE).exists()
        assert (catalog.folder_of(other) / MANIFEST_FILE).exists()


def test_one_that_is_removed_is_gone_for_the_next_daemon_whenever_this_one_dies(
    catalog: VolumeCatalog,
) -> None:
    data = add(catalog, volume("data"))
    catalog.forget(data)
    assert catalog.list() == []
    with pytest.raises(VolumeNameTaken):  # Its files are there still.
        add(catalog, volume("other", id=data))
    assert loaded(catalog).list() == []
    assert not catalog.folder_of(data).exists()
    catalog.remove_files(data)
    catalog.removed(data)
    add(catalog, volume("other", id=data))


def test_one_may_write_or_many_may_read(catalog: VolumeCatalog) -> None:
    data, attachments = add(catalog, volume("data")), catalog.attachments
    write, read = VolumeMount(data, "/w"), VolumeMount(data, "/r", is_read_only=True)
    for first, second, fits in ((write, write, False), (write, read, False), (read, write, False)):
        with attachments.changing(instance("one", first)):
            assert list(attachments.of(data)) == ["one"]
            with pytest.raises(VolumeInUse), attachments.changing(instance("two", second)):
                pass
        attachments.forget(InstanceId("one"))
        assert attachments.of(data) == {}, fits
    with attachments.changing(instance("one", read)), attachments.changing(instance("two", read)):
        pass
    assert attachments.of(data) == {"one": read, "two": read}
    attachments.forget(InstanceId("two"))
    with attachments.changing(instance("one", write)):  # Its own reading is not in its way.
        pass
    with (
        pytest.raises(VolumeNotFound),
        attachments.changing(instance("x", VolumeMount(VolumeId("no"), "/n"))),
    ):
        pass


def test_a_change_that_fails_changes_nothing(catalog: VolumeCatalog) -> None:
    data, other = add(catalog, volume("data")), add(catalog, volume("other"))
    attachments = catalog.attachments
    attachments.take_up(instance("one", VolumeMount(data, "/data")))
    changed = instance("one", VolumeMount(other, "/data"))

    def fail() -> None:
        with attachments.changing(changed):
            assert list(attachments.of(other)) == ["one"]
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (list(attachments.of(data)), attachments.of(other)) == (["one"], {})


def test_what_somebody_has_is_not_removed(catalog: VolumeCatalog) -> None:
    data, attachments = add(catalog, volume("data")), catalog.attachments
    attachments.take_up(instance("web", VolumeMount(data, "/data")))
    with pytest.raises(VolumeInUse, match="instance web"):
        catalog.forget(data)
    attachments.forget(InstanceId("web"))
    catalog.forget(data)


def test_a_snapshot_with_memory_has_what_its_guest_has_read_stay_as_it_is(catalog: VolumeCatalog) -> None:
    data, attachments = add(catalog, volume("data")), catalog.attachments
    read = VolumeMount(data, "/data", is_read_only=True)
    attachments.keep(snapshot(SnapshotKind.STOPPED, read))
    with attachments.changing(instance("web", VolumeMount(data, "/data"))):
        pass
    attachments.forget(InstanceId("web"))
    attachments.keep(snapshot(SnapshotKind.STANDBY, read))
    writer = instance("web", VolumeMount(data, "/data"))
    with pytest.raises(VolumeInUse, match="snapshot snap"), attachments.changing(writer):
        pass
    with pytest.raises(VolumeInUse, match="snapshot snap"):
        catalog.forget(data)
    assert attachments.of(data) == {}
    attachments.give_up(SnapshotId("snap"))
    catalog.forget(data)


def test_an_unclean_one_is_mounted_by_who_can_write_only(catalog: VolumeCatalog) -> None:
    data = add(catalog, volume("data"))
    file = catalog.folder_of(data) / DATA_FILE
    write = VolumeMount(data, "/data")
    assert catalog.disk_of(write) == catalog.disk_of(replace(write, is_read_only=True)) == file
    with file.open("r+b") as disk:
        disk.seek(INCOMPATIBLE_OFFSET)
        (flags,) = disk.read(1)
        disk.seek(INCOMPATIBLE_OFFSET)
        disk.write(bytes([flags | NEEDS_RECOVERY]))
    assert catalog.disk_of(write) == file
    with pytest.raises(VolumeUnclean):
        catalog.disk_of(replace(write, is_read_only=True))
    file.unlink()
    with pytest.raises(VolumeBroken):
        catalog.disk_of(write)
