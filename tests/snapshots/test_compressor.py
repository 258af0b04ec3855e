"""Stored memory is compressed in the background, and there for whoever needs it, whatever happens."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from ramet.core.compression import Compression
from ramet.core.ids import CaptureId
from ramet.snapshots import compressor
from ramet.snapshots.compression import Compressed, decompress
from ramet.snapshots.manifest import Manifest
from ramet.snapshots.store import CaptureBroken, CaptureStore
from ramet.vmm.port import MEMORY_FILE_NAME, CaptureFormat
from tests.waiting import until

pytestmark = pytest.mark.anyio

MEMORY_BYTES = 4 << 20
CAPTURE = CaptureId("capture")
HOW = Compression.of()
WORDS = b"what the guest remembers" * 1000


class Killed(BaseException):
    """The daemon ends here."""


async def stored(
    store: CaptureStore, how: Compression | None = HOW, delay_s: float = 0, capture: CaptureId = CAPTURE
) -> Path:
    """Store a capture, held by "test", to be compressed like that; returns its folder."""
    with store.draft(capture, MEMORY_BYTES, "test") as draft:
        memory, _ = draft.capture.memory.map_for_fill()
        memory[1 << 20 : (1 << 20) + len(WORDS)] = WORDS
        draft.capture.format = CaptureFormat("fake", "1", 1, "kvm")
        if how is not None:
            draft.compress_later(how, delay_s)
        await draft.commit()
    return draft.folder


@asynccontextmanager
async def running(store: CaptureStore) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        group.start_soon(store.run)
        yield
        group.cancel_scope.cancel()


def state(store: CaptureStore) -> str:
    return store.compressor.state(CAPTURE).state


def is_compressed_alone(folder: Path) -> bool:
    return {path.name for path in folder.rglob("*") if path.is_file()} - {"checksums.json"} == {
        "devices",
        "manifest.json",
        "memory.packed",
    }


async def check_memory(store: CaptureStore) -> None:
    async with store.opened(CAPTURE) as capture:
        content = Path(capture.memory.path).read_bytes()
        assert content.strip(b"\0") == WORDS
        assert len(content) == MEMORY_BYTES


def restarted(folder: Path) -> CaptureStore:
    """Return the store of the next daemon, which has found what the former left."""
    store = CaptureStore(folder)
    store.hold(CAPTURE, "test")
    assert store.sweep() == []
    return store


async def test_memory_is_compressed_and_comes_back(tmp_path: Path) -> None:
    store = CaptureStore(tmp_path)
    async with running(store):
        folder = await stored(store)
        await until(lambda: is_compressed_alone(folder))
        found = store.compressor.state(CAPTURE)
        assert (found.state, found.how) == ("compressed", HOW)
        assert found.compressed_bytes == (folder / "memory.packed").stat().st_size
        await check_memory(store)
        await check_memory(store)


async def test_memory_that_was_unpacked_goes_when_nobody_has_used_it_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressor, "REST_S", 0.0)
    store = CaptureStore(tmp_path)
    async with running(store):
        folder = await stored(store)
        await until(lambda: is_compressed_alone(folder))
        async with store.opened(CAPTURE):
            assert (folder / "unpacked" / MEMORY_FILE_NAME).exists()
        await until(lambda: is_compressed_alone(folder))


@pytest.mark.parametrize("how", [HOW, None])
async def test_what_is_not_due_or_not_wanted_is_left_alone(tmp_path: Path, how: Compression | None) -> None:
    store = CaptureStore(tmp_path)
    async with running(store):
        folder = await stored(store, how, delay_s=3600)
        await check_memory(store)
        other = await stored(store, capture=CaptureId("other"))
        await until(lambda: is_compressed_alone(other))
        assert (folder / MEMORY_FILE_NAME).exists()
        assert state(store) == ("none" if how is None else "compressing")
        store.compress(CAPTURE, HOW)
        await until(lambda: is_compressed_alone(folder))


async def test_who_needs_the_memory_ends_its_compression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = anyio.Event(), anyio.Event()

    async def endless(*_: Any) -> Compressed:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()
        raise AssertionError

    monkeypatch.setattr(compressor, "REST_S", 0.0)
    store = CaptureStore(tmp_path)
    async with running(store):
        with monkeypatch.context() as patch:
            patch.setattr(compressor, "_compress_apart", endless)
            folder = await stored(store)
            await begun.wait()
            async with store.opened(CAPTURE) as capture:
                assert Path(capture.memory.path).samefile(folder / MEMORY_FILE_NAME)
                await ended.wait()
        await until(lambda: is_compressed_alone(folder))


async def test_memory_that_is_needed_when_it_has_just_been_compressed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CaptureStore(tmp_path)
    written, go_on = anyio.Event(), anyio.Event()
    see_to = store.compressor._compress

    async def slow(*arguments: Any) -> Manifest:
        manifest = await see_to(*arguments)
        written.set()
        with anyio.CancelScope(shield=True):
            await go_on.wait()
        return manifest

    monkeypatch.setattr(store.compressor, "_compress", slow)
    async with running(store):
        folder = await stored(store)
        await written.wait()
        async with store.opened(CAPTURE) as capture:
            go_on.set()
            await until(lambda: store.compressor._backlog.current is None)
            assert Path(capture.memory.path).samefile(folder / MEMORY_FILE_NAME)


async def test_many_share_one_decompression_and_its_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CaptureStore(tmp_path)
    async with running(store):
        folder = await stored(store)
        await until(lambda: is_compressed_alone(folder))
    calls: list[Path] = []

    def counted(packed: Path, *arguments: Any) -> None:
        calls.append(packed)
        decompress(packed, *arguments)

    monkeypatch.setattr(compressor, "decompress", counted)
    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(check_memory, store)
    assert len(calls) == 1
    store = restarted(tmp_path)
    packed = folder / "memory.packed"
    packed.write_bytes(packed.read_bytes()[:-7] + b"damaged")
    errors: list[CaptureBroken] = []

    async def fail() -> None:
        with pytest.raises(CaptureBroken, match="cannot be decompressed") as caught:
            await check_memory(store)
        errors.append(caught.value)

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(fail)
    assert (len(errors), len(calls)) == (8, 2)


async def test_memory_that_is_nowhere_is_gone(tmp_path: Path) -> None:
    store = CaptureStore(tmp_path)
    folder = await stored(store, None)
    (folder / MEMORY_FILE_NAME).unlink()
    with pytest.raises(CaptureBroken, match="is gone"):
        await check_memory(store)


STEPS = ["_compress_apart", "sync_folder", "write_whole", "_delete_raw", "unlink"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_daemon_killed_at_any_step_loses_nothing_and_the_next_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    store = CaptureStore(tmp_path)
    folder = await stored(store)
    owner = {"_delete_raw": compressor.Compressor, "unlink": Path}.get(step, compressor)
    done = getattr(owner, step)

    def kill(*arguments: Any, **named: Any) -> Any:
        if step == "unlink" and arguments[0].name != f"{MEMORY_FILE_NAME}.gone":
            return done(*arguments, **named)
        if when == "before":
            raise Killed
        done(*arguments, **named)
        raise Killed

    async def kill_later(*arguments: Any) -> Any:
        if when == "after":
            await done(*arguments)
        raise Killed

    is_async = step in ("_compress_apart", "_delete_raw")
    monkeypatch.setattr(owner, step, kill_later if is_async else kill)
    with pytest.raises(BaseExceptionGroup) as caught:
        async with running(store):
            await anyio.sleep_forever()
    assert caught.group_contains(Killed)
    monkeypatch.undo()
    await check_memory(restarted(tmp_path))
    store = restarted(tmp_path)
    async with running(store):
        await until(lambda: is_compressed_alone(folder))
        await check_memory(store)


async def test_a_compressor_that_fails_says_so_and_leaves_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> Compressed:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compressor, "_compress_apart", fail)
    store = CaptureStore(tmp_path)
    async with running(store):
        folder = await stored(store)
        await until(lambda: state(store) == "error")
        assert store.compressor.state(CAPTURE).error == "No space left on device"
        await check_memory(store)
        monkeypatch.undo()
        store.compress(CAPTURE, HOW)
        await until(lambda: is_compressed_alone(folder))


async def test_a_process_that_cannot_compress_says_why(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await compressor._compress_apart(tmp_path / "nothing", tmp_path / "packed", HOW)


async def test_a_capture_that_is_given_up_is_compressed_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = anyio.Event()

    async def endless(*_: Any) -> Compressed:
        begun.set()
        await anyio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(compressor, "_compress_apart", endless)
    store = CaptureStore(tmp_path)
    async with running(store):
        await stored(store)
        await begun.wait()
        store.release(CAPTURE, "test")
        await until(lambda: not list(tmp_path.iterdir()))
        assert state(store) == "none"


async def test_the_manifest_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    store = CaptureStore(tmp_path)
    folder = await stored(store, None)
    raw = json.loads((folder / "manifest.json").read_bytes())
    del raw["wanted"], raw["compressed"]
    (folder / "manifest.json").write_text(json.dumps(raw))
    manifest = store.manifest(CAPTURE)
    assert (manifest.wanted, manifest.compressed) == (None, None)
    assert manifest.created_at <= time.time()
