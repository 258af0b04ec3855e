"""Sleepers whose memory is compressed wake as if it were not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from ramet.core.compression import NOT_SAID, Compression, CompressionAsk
from ramet.core.errors import RametError
from ramet.core.ids import CaptureId
from ramet.core.snapshot import SnapshotKind
from ramet.core.spec import State
from ramet.snapshots import compressor
from ramet.snapshots.compression import Compressed, decompress
from tests.effects.test_standby import settled
from tests.effects.world import Daemon, World

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

ASK = CompressionAsk(Compression.of(), is_said=True)
OFF = CompressionAsk(None, is_said=True)
TIMEOUT_S = 60.0


def capture_of(daemon: Daemon, name: str) -> CaptureId:
    capture = daemon.fleet.get(name).record.capture
    assert capture is not None
    return capture


async def compressed(daemon: Daemon, capture: CaptureId) -> Path:
    """Wait until a capture is there compressed and not otherwise; returns the compressed file."""
    folder = daemon.site.folder.captures / capture
    with anyio.fail_after(TIMEOUT_S):
        while daemon.site.captures.compressor.state(capture).state != "compressed" or list(
            folder.rglob("ramet-memory*")
        ):
            await anyio.lowlevel.checkpoint()
    return folder / "memory.packed"


async def sleep_warm(daemon: Daemon, compression: CompressionAsk = ASK) -> CaptureId:
    """Have "src" sleep, with something in its memory."""
    await daemon.fleet.create("src", daemon.spec)
    await daemon.run("src", "set", "warm", "memory")
    await daemon.fleet.standby("src", compression)
    return capture_of(daemon, "src")


async def check_warm(daemon: Daemon, name: str) -> None:
    assert (await daemon.memory(name))["variables"] == {"warm": "memory"}
    assert await daemon.is_well(name)


async def test_a_sleeper_wakes_from_compressed_memory_and_nothing_is_left(world: World) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        await compressed(daemon, await sleep_warm(daemon))
        await daemon.fleet.restore("src")
        await check_warm(daemon, "src")
        await settled(world, captures=0)
        await daemon.fleet.delete("src")
        assert world.leftovers() == before


async def test_a_wake_goes_on_at_once_while_memory_is_compressed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = anyio.Event(), anyio.Event()

    async def endless(*_: Any) -> Compressed:
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()
        raise AssertionError

    monkeypatch.setattr(compressor, "_compress_apart", endless)
    async with world.daemon() as daemon:
        await sleep_warm(daemon)
        await begun.wait()
        assert daemon.fleet.get("src").record.state is State.STANDBY
        await daemon.fleet.restore("src")
        assert ended.is_set()
        await check_warm(daemon, "src")
        await settled(world, captures=0)


async def test_forks_of_a_compressed_sleeper_share_one_decompression(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def counted(packed: Path, *arguments: Any) -> None:
        calls.append(packed)
        decompress(packed, *arguments)

    monkeypatch.setattr(compressor, "decompress", counted)
    async with world.daemon() as daemon:
        packed = await compressed(daemon, await sleep_warm(daemon))
        outcomes = await daemon.fleet.fork("src", ["a", "b", "c"], target=State.RUNNING)
        assert [outcome.error for outcome in outcomes] == [None, None, None]
        await daemon.fleet.restore("src")
        for name in ("src", "a", "b", "c"):
            await check_warm(daemon, name)
        assert calls == [packed]


async def test_a_compressed_sleeper_outlives_the_daemon_and_so_does_what_is_not_done(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = anyio.Event()

    async def endless(*_: Any) -> Compressed:
        begun.set()
        await anyio.sleep_forever()
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(compressor, "_compress_apart", endless)
        async with world.daemon() as daemon:
            capture = await sleep_warm(daemon)
            await begun.wait()
    async with world.daemon() as daemon:
        await compressed(daemon, capture)
    async with world.daemon() as daemon:
        await compressed(daemon, capture)
        await daemon.fleet.restore("src")
        await check_warm(daemon, "src")


async def test_damaged_memory_wakes_nobody(world: World) -> None:
    async with world.daemon() as daemon:
        packed = await compressed(daemon, await sleep_warm(daemon))
        whole = packed.read_bytes()
        packed.write_bytes(whole[:-4] + b"torn")
        with pytest.raises(RametError) as caught:
            await daemon.fleet.restore("src")
        assert caught.value.code == "capture_broken"
        assert daemon.fleet.get("src").record.state is State.STANDBY
        packed.write_bytes(whole)
        await daemon.fleet.restore("src")
        await check_warm(daemon, "src")


async def test_the_request_comes_before_the_default_of_the_server(world: World) -> None:
    async with world.daemon() as daemon:
        daemon.site.compression = Compression.of("lz4")
        await sleep_warm(daemon, OFF)
        assert daemon.site.captures.manifest(capture_of(daemon, "src")).wanted is None
        await daemon.fleet.restore("src")
        await daemon.fleet.standby("src")
        wanted = daemon.site.captures.manifest(capture_of(daemon, "src")).wanted
        assert wanted is not None
        assert wanted.how == Compression.of("lz4")
        await daemon.fleet.restore("src")
        await daemon.fleet.standby("src", CompressionAsk(delay_s=3600))
        manifest = daemon.site.captures.manifest(capture_of(daemon, "src"))
        assert manifest.wanted is not None
        assert manifest.wanted.not_before == manifest.created_at + 3600
        daemon.site.compression = None
        await daemon.fleet.restore("src")
        await daemon.fleet.standby("src")
        assert daemon.site.captures.manifest(capture_of(daemon, "src")).wanted is None


async def test_the_instance_comes_before_the_server_and_after_the_request(world: World) -> None:
    policy = CompressionAsk(Compression.of("lz4", 9), is_said=True, delay_s=3600)
    async with world.daemon() as daemon:
        daemon.site.compression = Compression.of("zstd", 3)

        async def wanted_after(name: str, ask: CompressionAsk = NOT_SAID) -> tuple[Compression, float] | None:
            """Return how a sleeper is to be compressed, and how long after it fell asleep; it wakes then."""
            await daemon.fleet.standby(name, ask)
            manifest = daemon.site.captures.manifest(capture_of(daemon, name))
            await daemon.fleet.restore(name)
            wanted = manifest.wanted
            return None if wanted is None else (wanted.how, wanted.not_before - manifest.created_at)

        await daemon.fleet.create("src", replace(daemon.spec, compression=policy))
        assert await wanted_after("src") == (Compression.of("lz4", 9), 3600)
        assert await wanted_after("src", CompressionAsk(delay_s=7200)) == (Compression.of("lz4", 9), 7200)
        assert await wanted_after("src", replace(ASK, delay_s=0)) == (Compression.of(), 0)
        assert await wanted_after("src", OFF) is None
        await daemon.fleet.fork("src", ["kid"])
        assert await wanted_after("kid") == (Compression.of("lz4", 9), 3600)
        for ask, how in ((NOT_SAID, Compression.of("lz4", 9)), (OFF, None), (ASK, Compression.of())):
            snapshot = await daemon.snapshots.create("src", SnapshotKind.STANDBY, None, {}, ask)
            memory = daemon.snapshots.memory_state(snapshot)
            assert memory is not None
            assert memory.how == how
    async with world.daemon() as daemon:
        assert daemon.fleet.get("src").record.spec.compression == policy
        off = replace(daemon.spec, compression=OFF)
        daemon.site.compression = Compression.of()
        await daemon.fleet.create("off", off)
        await daemon.fleet.standby("off")
        assert daemon.site.captures.manifest(capture_of(daemon, "off")).wanted is None


@pytest.mark.parametrize("state", [State.RUNNING, State.STANDBY])
async def test_a_compressed_snapshot_is_forked_and_gone_back_to(world: World, state: State) -> None:
    async with world.daemon() as daemon:
        await sleep_warm(daemon, OFF)
        await daemon.fleet.bring_to("src", state)
        snapshot = await daemon.snapshots.create("src", SnapshotKind.STANDBY, "warm", {}, ASK)
        assert snapshot.point.capture is not None
        packed = await compressed(daemon, snapshot.point.capture)
        shown = daemon.snapshots.memory_state(snapshot)
        assert shown is not None
        assert (shown.state, shown.compressed_bytes) == ("compressed", packed.stat().st_size)
        (outcome,) = await daemon.snapshots.fork("warm", ["child"])
        assert outcome.error is None
        await check_warm(daemon, "child")
        if state is State.STANDBY:
            await daemon.fleet.restore("src")
        await daemon.run("src", "set", "warm", "spoilt")
        await daemon.fleet.stop("src")
        await daemon.snapshots.restore("src", "warm")
        await check_warm(daemon, "src")
