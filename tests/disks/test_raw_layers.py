"""Raw layers: each becomes a whole disk, and keeps what it is to be a copy of until it is one."""

import os
from pathlib import Path

import pytest

from ramet.core.ids import LayerId
from ramet.disks.layers import DiskFormUnsupported, LayerBroken, LayerStore
from ramet.disks.qcow2 import CLUSTER_BYTES
from ramet.disks.raw_layers import BELOW_SUFFIX
from ramet.linux.clone import clone_file

SIZE = 64 << 20
CONTENT = b"written by the guest"
PLACE = 40 * CLUSTER_BYTES


def fill(store: LayerStore, layer: LayerId, content: bytes = b"") -> None:
    """Do what a driver does before the guest runs, and then a guest."""
    top, below = (path for path, _ in store.chain(layer))
    clone_file(below, top)
    with top.open("r+b") as file:
        file.seek(PLACE)
        file.write(content)


def names(store: LayerStore, layer: LayerId) -> list[str]:
    return [path.name for path, _ in store.chain(layer)]


def files(folder: Path) -> set[str]:
    return {name for name in os.listdir(folder) if not name.startswith("ext4-")}


def test_a_layer_is_told_what_to_become_a_copy_of_and_then_stands_alone(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    layer = store.create(SIZE, "raw")
    assert names(store, layer) == [f"{layer}.raw", f"ext4-{SIZE}.raw"]
    assert {form for _, form in store.chain(layer)} == {"raw"}
    fill(store, layer)
    assert names(store, layer) == [f"{layer}.raw"]
    assert store.disk_bytes(layer) == 512 * store.path(layer).stat().st_blocks
    store.release(layer)
    assert files(tmp_path) == set()


def test_a_frozen_layer_is_kept_for_children_that_are_not_copies_of_it_yet(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    source = store.create(SIZE, "raw")
    fill(store, source)
    top, child = store.create_on(source, SIZE), store.create_on(source, SIZE)
    fill(store, top)
    store.release(source)
    assert store.path(source).exists()
    fill(store, child)
    store.release(top)
    assert not store.path(source).exists()
    assert files(tmp_path) == {f"{child}.raw"}


def test_what_nobody_started_stands_on_the_whole_disk_at_the_bottom(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    source = store.create(SIZE, "raw")
    fill(store, source, CONTENT)
    copy = store.create_on(source, SIZE)
    copy_of_copy = store.create_on(copy, SIZE)
    assert names(store, copy_of_copy) == [f"{copy_of_copy}.raw", f"{source}.raw"]
    for layer in (source, copy):
        store.release(layer)
    fill(store, copy_of_copy)
    store.sweep()
    assert files(tmp_path) == {f"{copy_of_copy}.raw"}
    assert store.path(copy_of_copy).read_bytes()[PLACE:].startswith(CONTENT)


def test_the_next_daemon_knows_them(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    source = store.create(SIZE, "raw")
    fill(store, source)
    top, child = store.create_on(source, SIZE), store.create_on(source, SIZE)
    fill(store, top)

    again = LayerStore(tmp_path)
    # A copy that was made tells still, until the sweep, of what: a switch without a record is found by it.
    assert again.is_directly_on(top, source)
    for layer in (top, child):
        again.hold(layer)
    assert again.sweep() == []
    assert names(again, child) == [f"{child}.raw", f"{source}.raw"]
    again.release(child)
    assert files(tmp_path) == {f"{top}.raw"}
    assert LayerStore(tmp_path).sweep() == [tmp_path / f"{top}.raw"]


def test_what_a_crash_left_behind_is_swept(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    layer = store.create(SIZE, "raw")
    (tmp_path / f"nobody{BELOW_SUFFIX}").symlink_to(f"ext4-{SIZE}.raw")
    (tmp_path / f"{layer}.raw.part").touch()
    again = LayerStore(tmp_path)
    again.hold(layer)
    again.sweep()
    assert files(tmp_path) == {f"{layer}.raw", f"{layer}{BELOW_SUFFIX}"}


def test_an_empty_layer_that_has_lost_its_link_is_damaged(tmp_path: Path) -> None:
    layer = LayerStore(tmp_path).create(SIZE, "raw")
    (tmp_path / f"{layer}{BELOW_SUFFIX}").unlink()
    with pytest.raises(LayerBroken, match="copy"):
        LayerStore(tmp_path).hold(layer)


def test_a_raw_disk_can_go_on_in_layers_and_not_the_other_way(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    raw = store.create(SIZE, "raw")
    fill(store, raw, CONTENT)
    layered = store.create_on(raw, SIZE, form="qcow2")
    store.release(raw)
    assert names(store, layered) == [f"{layered}.qcow2", f"{raw}.raw"]
    again = LayerStore(tmp_path)
    again.hold(layered)
    assert again.sweep() == []
    with pytest.raises(DiskFormUnsupported):
        store.create_on(layered, SIZE, form="raw")


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_a_whole_disk_is_read_and_written_in_each_form(tmp_path: Path, form: str) -> None:
    store = LayerStore(tmp_path)
    source = store.create(SIZE, "raw")
    fill(store, source, CONTENT)
    with store.draft(SIZE, "raw" if form == "raw" else "qcow2") as draft, store.reader(source) as reader:
        assert reader.size_bytes == SIZE
        for run in reader.runs():
            draft.write(run.offset, os.pread(run.fd, run.length_bytes, run.file_offset))
        draft.finish()
        store.adopt(draft)
    assert store.path(draft.id).suffix == f".{form}"
    with store.reader(draft.id) as copied, store.reader(source) as reader:
        mine, theirs = (
            {
                run.offset + at: data[at : at + CLUSTER_BYTES]
                for run in disk.runs()
                for data in [os.pread(run.fd, run.length_bytes, run.file_offset)]
                for at in range(0, len(data), CLUSTER_BYTES)
            }
            for disk in (copied, reader)
        )
    assert mine == theirs
    assert mine[PLACE].startswith(CONTENT)
