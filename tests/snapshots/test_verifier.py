"""Checksums are made in the background, in nobody's way, and tell what has changed since."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from ramet.core.ids import CaptureId
from ramet.core.verification import CHUNK_BYTES, CheckedPart, Part, Proof
from ramet.linux.stored_file import StoredFile
from ramet.snapshots import verifier
from ramet.snapshots.checksums import Found
from ramet.snapshots.store import CaptureStore
from ramet.vmm.port import MEMORY_FILE_NAME
from tests.snapshots.test_compressor import (
    CAPTURE,
    HOW,
    Killed,
    is_compressed_alone,
    restarted,
    running,
    stored,
)
from tests.waiting import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "SETTLE_S", 0.0)
    monkeypatch.setattr(verifier, "REST_S", 0.0)


def flip(file: Path, offset: int) -> None:
    """Change one bit of a file that nobody may write."""
    file.chmod(0o600)
    with file.open("r+b") as opened:
        byte = os.pread(opened.fileno(), 1, offset)
        os.pwrite(opened.fileno(), bytes([byte[0] ^ 1]), offset)


def killing(done: Callable[..., Any], when: str) -> Callable[..., Any]:
    """Return a step that kills the daemon "before" or "after" it is `done`."""

    def kill(*arguments: Any) -> Any:
        if when == "after":
            done(*arguments)
        raise Killed

    async def kill_later(*arguments: Any) -> Any:
        if when == "after":
            await done(*arguments)
        raise Killed

    return kill_later if inspect.iscoroutinefunction(done) else kill


def damaged(parts: tuple[CheckedPart, ...]) -> list[tuple[str, int | None]]:
    return [(part.file, part.chunk) for part in parts if part.damage]


@pytest.mark.usefixtures("at_once")
async def test_they_are_made_and_a_bit_that_flips_afterwards_is_found(tmp_path: Path) -> None:
    store = CaptureStore(tmp_path)
    async with running(store):
        folder = await stored(store, None)
        await until((folder / "checksums.json").exists)
    parts = await store.verify(CAPTURE)
    assert {(part.part, part.proof, part.damage) for part in parts} == {
        (Part.MEMORY, Proof.CHECKSUMS, ""),
        (Part.DEVICES, Proof.CHECKSUMS, ""),
    }
    flip(folder / MEMORY_FILE_NAME, CHUNK_BYTES + 5)  # Within what the guest remembers.
    assert damaged(await store.verify(CAPTURE)) == [(MEMORY_FILE_NAME, 1)]
    flip(folder / MEMORY_FILE_NAME, CHUNK_BYTES + 5)
    flip(folder / MEMORY_FILE_NAME, 3 * CHUNK_BYTES)  # Where it has nothing.
    assert damaged(await store.verify(CAPTURE)) == [(MEMORY_FILE_NAME, 3)]


async def test_a_capture_without_any_gets_them_when_it_is_verified(tmp_path: Path) -> None:
    store = CaptureStore(tmp_path)
    folder = await stored(store, None)
    assert {part.proof for part in await store.verify(CAPTURE)} == {Proof.READABLE}
    before = (folder / "checksums.json").read_bytes()
    assert {part.proof for part in await store.verify(CAPTURE)} == {Proof.CHECKSUMS}
    flip(folder / MEMORY_FILE_NAME, 0)
    assert damaged(await store.verify(CAPTURE)) == [(MEMORY_FILE_NAME, 0)]
    # What is found later is never taken for what was stored.
    assert (folder / "checksums.json").read_bytes() == before


@pytest.mark.usefixtures("at_once")
async def test_compressed_memory_is_compared_with_what_it_was_before(tmp_path: Path) -> None:
    store = CaptureStore(tmp_path)
    folder = await stored(store, None)
    await store.verify(CAPTURE)
    store.compress(CAPTURE, HOW)
    async with running(store):
        await until(lambda: is_compressed_alone(folder))
    assert damaged(await store.verify(CAPTURE)) == []
    assert (folder / "memory.packed").exists()
    assert not (folder / "unpacked").exists()
    flip(folder / "memory.packed", (folder / "memory.packed").stat().st_size // 2)
    ((file, _),) = damaged(await store.verify(CAPTURE))
    assert file == "memory.packed"


async def test_what_cannot_be_read_gets_none(tmp_path: Path) -> None:
    store = CaptureStore(tmp_path)
    folder = await stored(store, None)
    (folder / MEMORY_FILE_NAME).unlink()
    assert damaged(await store.verify(CAPTURE)) == [(MEMORY_FILE_NAME, 0)]
    assert not (folder / "checksums.json").exists()
    StoredFile.create(folder / MEMORY_FILE_NAME, 4 << 20).close()
    await store.verify(CAPTURE)
    (folder / "checksums.json").write_text("[]")
    assert damaged(await store.verify(CAPTURE)) == [("checksums.json", None)]


async def test_a_wake_ends_their_making_and_they_are_made_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: None
) -> None:
    begun, ended = anyio.Event(), anyio.Event()

    look_apart = verifier.look_apart

    async def endless_at_first(folder: Path) -> list[Found]:
        if begun.is_set():
            return await look_apart(folder)
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()
        raise AssertionError

    monkeypatch.setattr(verifier, "look_apart", endless_at_first)
    store = CaptureStore(tmp_path)
    async with running(store):
        folder = await stored(store, None)
        await begun.wait()
        async with store.opened(CAPTURE):
            await ended.wait()
        await until((folder / "checksums.json").exists)


async def test_nobody_begins_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verifier, "SETTLE_S", 3600.0)
    store = CaptureStore(tmp_path)
    async with running(store):
        await stored(store, None)
        other = await stored(store, capture=CaptureId("other"))
        await until(lambda: is_compressed_alone(other))
        assert not list(tmp_path.rglob("checksums.json"))


@pytest.mark.usefixtures("at_once")
async def test_a_capture_that_is_given_up_is_read_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = anyio.Event()

    async def endless(_: Path) -> list[Found]:
        begun.set()
        await anyio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(verifier, "look_apart", endless)
    store = CaptureStore(tmp_path)
    async with running(store):
        await stored(store, None)
        await begun.wait()
        store.release(CAPTURE, "test")
        await until(lambda: not list(tmp_path.iterdir()))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["look_apart", "write_whole"])
async def test_a_daemon_killed_at_any_step_leaves_all_or_none_and_the_next_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    store = CaptureStore(tmp_path)
    folder = await stored(store, None)
    monkeypatch.setattr(verifier, step, killing(getattr(verifier, step), when))
    with pytest.raises(BaseExceptionGroup) as caught:
        async with running(store):
            await anyio.sleep_forever()
    assert caught.group_contains(Killed)
    monkeypatch.undo()
    monkeypatch.setattr(verifier, "SETTLE_S", 0.0)
    assert (folder / "checksums.json").exists() is (step == "write_whole" and when == "after")
    store = restarted(tmp_path)
    async with running(store):
        await until((folder / "checksums.json").exists)
    assert damaged(await store.verify(CAPTURE)) == []


async def test_a_process_that_cannot_look_says_why(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        await verifier.look_apart(tmp_path / "nothing")
