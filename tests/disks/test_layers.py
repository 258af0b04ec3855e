"""Layers are there as long as somebody needs them, and no longer."""

import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.core.ids import LayerId
from ramet.disks.layers import LayerBroken, LayerStore

SIZE = 64 << 20


def test_a_child_keeps_the_frozen_layer_of_a_deleted_source(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    first = store.create(SIZE)
    second = store.create_on(first, SIZE)
    child = store.create_on(first, SIZE)
    store.release(first)
    store.release(second)
    assert [path for path, _ in store.chain(child)] == [
        store.path(child),
        store.path(first),
        tmp_path / f"ext4-{SIZE}.raw",
    ]
    assert not store.path(second).exists()
    store.release(child)
    assert store.statistics() == {"held": 0, "files": 0, "undeleted": 0}


def test_a_disk_may_have_file_systems_behind_its_first(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    top = store.create_on(store.create(SIZE, behind=(SIZE // 2, SIZE)), SIZE * 5 // 2)
    base = store.base(top)
    assert base.stat().st_size == SIZE * 5 // 2
    for offset in (0, SIZE, SIZE * 3 // 2):
        read = ["dumpe2fs", "-h", f"{base}?offset={offset}"]
        shown = subprocess.run(read, capture_output=True, text=True, check=True).stdout
        assert "Filesystem state:         clean" in shown, offset
    assert store.base(store.create(SIZE)) != base
    assert LayerStore(tmp_path).base(top) == base


def test_a_disk_takes_what_its_layers_take(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    first = store.create(SIZE)
    top = store.create_on(first, SIZE)
    before = store.disk_bytes(top)
    assert before == store.disk_bytes(first) + 512 * store.path(top).stat().st_blocks
    write = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M"]
    subprocess.run([*write, store.path(top)], check=True, stdout=subprocess.DEVNULL)
    assert store.disk_bytes(top) - before >= 1 << 20
    assert store.disk_bytes(first) < 1 << 20


def test_a_missing_layer_is_named(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    first = store.create(SIZE)
    top = store.create_on(first, SIZE)
    store.path(first).unlink()
    with pytest.raises(LayerBroken, match=first):
        LayerStore(tmp_path).hold(top)


def test_a_shortened_chain_lets_go_of_the_middle(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    bottom = store.create(SIZE)
    top = store.create_on(bottom, SIZE)
    store.release(bottom)
    rebase: list[str | Path] = [
        "qemu-img",
        "rebase",
        "-u",
        "-F",
        "raw",
        "-b",
        store.base(top),
        store.path(top),
    ]
    subprocess.run(rebase, check=True)
    store.rebased(top)
    assert [path for path, _ in store.chain(top)] == [store.path(top), store.base(top)]
    assert not store.path(bottom).exists()


def test_what_a_crash_left_is_swept(tmp_path: Path) -> None:
    kept = LayerStore(tmp_path).create(SIZE)
    lost = LayerStore(tmp_path).create(SIZE)
    store = LayerStore(tmp_path)
    store.hold(kept)
    assert store.sweep() == [store.path(lost)]


def test_a_layer_that_a_crash_left_half_written_is_swept_and_keeps_nobody_from_starting(
    tmp_path: Path,
) -> None:
    kept = LayerStore(tmp_path).create(SIZE)
    half, part = tmp_path / "half.qcow2", tmp_path / "half.part"
    half.touch()
    part.touch()
    store = LayerStore(tmp_path)
    store.hold(kept)
    assert set(store.sweep()) == {half, part}
    assert {path for path, _ in store.chain(kept)} == set(tmp_path.iterdir())


def test_nothing_is_swept_while_somebody_holds_a_damaged_layer(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    bottom = store.create(SIZE)
    middle = store.create_on(bottom, SIZE)
    top = store.create_on(middle, SIZE)
    for damaged in (top, middle):
        whole = store.path(damaged).read_bytes()
        store.path(damaged).write_bytes(b"damaged")
        later = LayerStore(tmp_path)
        with pytest.raises(LayerBroken, match=f"{damaged}.*damaged"):
            later.hold(top)
        assert later.sweep() == []
        store.path(damaged).write_bytes(whole)
        assert later.chain(top) == store.chain(top)
    store.release(top)
    assert not store.path(top).exists()


def test_what_could_not_be_swept_goes_when_all_can_be_read_again(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    bottom, stray, short = store.create(SIZE), store.create(SIZE), store.create(SIZE)
    top = store.create_on(bottom, SIZE)
    whole = store.path(top).read_bytes()
    store.path(top).write_bytes(b"damaged")
    later = LayerStore(tmp_path)
    for layer in (top, short):
        with suppress(LayerBroken):
            later.hold(layer)
    assert later.sweep() == []
    assert later.statistics()["undeleted"] == 2  # The stray, and what the damaged one may stand on.
    store.path(top).write_bytes(whole)
    assert later.chain(top) == store.chain(top)
    later.release(short)
    assert set(tmp_path.glob("*.qcow2")) == {store.path(top), store.path(bottom)}
    assert later.statistics()["undeleted"] == 0
    assert not store.path(stray).exists()


def test_a_release_deletes_nothing_that_a_damaged_layer_may_stand_on(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    bottom = store.create(SIZE)
    tops = [store.create_on(bottom, SIZE) for _ in range(2)]
    whole = store.path(tops[0]).read_bytes()
    store.path(tops[0]).write_bytes(b"damaged")
    later = LayerStore(tmp_path)
    with pytest.raises(LayerBroken):
        later.hold(tops[0])
    later.hold(tops[1])
    later.release(tops[1])
    assert store.path(bottom).exists()
    store.path(tops[0]).write_bytes(whole)
    later.hold(tops[0])
    later.release(tops[0])
    assert list(tmp_path.glob("*.qcow2")) == []


def test_what_stands_on_a_missing_layer_is_kept_while_it_is_held(tmp_path: Path) -> None:
    store = LayerStore(tmp_path)
    bottom = store.create(SIZE)
    top = store.create_on(bottom, SIZE)
    away = store.path(bottom).rename(tmp_path / "away")
    later = LayerStore(tmp_path)
    with pytest.raises(LayerBroken, match="missing"):
        later.hold(top)
    assert later.sweep() == []
    away.rename(store.path(bottom))
    LayerStore(tmp_path).hold(top)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["fork", "drop"]), st.integers(0, 99)), max_size=25))
def test_every_live_disk_is_always_whole(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    store = LayerStore(tmp_path_factory.mktemp("layers"))
    tops: list[LayerId] = [store.create(SIZE)]
    for step, choice in steps:
        if not tops:
            break
        index = choice % len(tops)
        if step == "fork":
            frozen = tops[index]
            tops[index] = store.create_on(frozen, SIZE)
            tops.append(store.create_on(frozen, SIZE))
            store.release(frozen)
        else:
            store.release(tops.pop(index))
        for top in tops:
            assert store.chain(top)[-1][0].suffix == ".raw"
    for top in tops:
        store.release(top)
    assert store.statistics() == {"held": 0, "files": 0, "undeleted": 0}
