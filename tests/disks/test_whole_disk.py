"""A disk that is written as one layer is the disk that a chain of layers was, to QEMU's own tools, too."""

import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet.core.ids import LayerId
from ramet.disks.layers import LayerBroken, LayerStore

SIZES = [1 << 20, (8 << 20) + 512, (1100 << 20) + 4096]  # The last has three L2 tables.
FILE_BYTES_MAX = 30 << 20


def command(path: Path, *commands: str) -> None:
    asked = [word for line in commands for word in ("-c", line)]
    subprocess.run(["qemu-io", "-f", "qcow2", *asked, path], check=True, stdout=subprocess.DEVNULL)


def copied(store: LayerStore, layer: LayerId, size_bytes: int) -> LayerId:
    with store.reader(layer) as reader, store.draft(size_bytes) as draft:
        assert reader.size_bytes == size_bytes
        for run in reader.runs():
            draft.write(run.offset, run.read(0, run.length_bytes))
        draft.finish()
        store.adopt(draft)
    return draft.id


def are_equal(one: Path, other: Path) -> bool:
    return subprocess.run(["qemu-img", "compare", one, other], stdout=subprocess.DEVNULL).returncode == 0


@pytest.fixture
def store(tmp_path: Path) -> LayerStore:
    return LayerStore(tmp_path)


@pytest.mark.parametrize("size_bytes", SIZES)
def test_a_copy_is_the_chain_whatever_was_written_where(store: LayerStore, size_bytes: int) -> None:
    chance = random.Random(size_bytes)
    bottom = (store._folder / f"ext4-{size_bytes}.raw").open("wb")
    with bottom:  # Any base will do; a small one cannot be formatted.
        bottom.truncate(size_bytes)
        for _ in range(5):
            bottom.seek(chance.randrange(size_bytes - 5000) // 4096 * 4096)
            bottom.write(chance.randbytes(4096))
    layer = store.create(size_bytes)
    for _ in range(4):
        asked = []
        for _ in range(6):
            offset = chance.randrange(size_bytes) // 512 * 512
            length = min(chance.choice([512, 70_000 // 512 * 512, 1 << 20]), size_bytes - offset)
            asked.append(f"write {chance.choice(['-z', '-P 7'])} {offset} {length}")
        command(store.path(layer), *asked)
        layer = store.create_on(layer, size_bytes)
    copy = copied(store, layer, size_bytes)
    assert are_equal(store.path(copy), store.path(layer))
    subprocess.run(["qemu-img", "check", store.path(copy)], check=True, stdout=subprocess.DEVNULL)
    assert store.disk_bytes(copy) < FILE_BYTES_MAX
    command(store.path(copy), f"write -P 9 {size_bytes // 2 // 512 * 512} 66048")  # It can be a top.
    subprocess.run(["qemu-img", "check", store.path(copy)], check=True, stdout=subprocess.DEVNULL)


def test_nothing_of_another_base_shines_through_a_copy(store: LayerStore, tmp_path: Path) -> None:
    size_bytes = 64 << 20
    layer = store.create(size_bytes)
    command(store.path(layer), "write -P 5 1000000 100000")
    copy = copied(store, layer, size_bytes)
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", store.path(layer), raw], check=True)
    store.base(copy).write_bytes(b"\xff" * size_bytes)
    assert are_equal(store.path(copy), raw)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:70])


def _give_features(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[79] |= 4  # An external data file.
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [_cut, _give_features])
def test_a_layer_that_is_none_of_ours_is_not_read(store: LayerStore, damage: Callable[[Path], None]) -> None:
    layer = store.create(64 << 20)
    damage(store.path(layer))
    with pytest.raises(LayerBroken), store.reader(layer):
        pass


def test_a_draft_that_is_not_adopted_is_gone(store: LayerStore, tmp_path: Path) -> None:
    with store.draft(64 << 20) as draft:
        draft.write(0, bytes(1 << 16))
    assert list(tmp_path.iterdir()) == []
    assert store.statistics() == {"held": 0, "files": 0, "undeleted": 0}
