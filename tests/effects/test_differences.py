"""Whoever slept before stores only what has changed since, and nobody can tell."""

from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from ramet.core.compression import Compression, CompressionAsk
from ramet.core.errors import RametError
from ramet.core.snapshot import SnapshotKind
from ramet.core.spec import State
from ramet.snapshots.manifest import Manifest
from ramet.vmm.fake.faults import Call
from ramet.vmm.port import VmmFailed
from tests.effects.test_compression import TIMEOUT_S, capture_of, compressed
from tests.effects.test_standby import settled
from tests.effects.world import Daemon, World

pytestmark = [pytest.mark.anyio, pytest.mark.netns]


def manifest(daemon: Daemon, name: str = "src") -> Manifest:
    return daemon.site.captures.manifest(capture_of(daemon, name))


def base(daemon: Daemon, name: str = "src") -> Path:
    return daemon.site.instance_folder(daemon.fleet.get(name).record.id) / "base-memory"


async def without_base(daemon: Daemon) -> None:
    """Wait until the memory that "src" woke from is kept no more."""
    with anyio.fail_after(TIMEOUT_S):
        while base(daemon).exists():
            await anyio.lowlevel.checkpoint()


async def sleep_again(daemon: Daemon) -> None:
    """Have "src" wake, learn something, and sleep again."""
    await daemon.fleet.create("src", daemon.spec)
    await daemon.run("src", "set", "first", "1")
    await daemon.fleet.standby("src")
    assert manifest(daemon).changes is None
    await daemon.fleet.restore("src")
    await daemon.run("src", "set", "second", "2")
    await daemon.fleet.standby("src")


async def check(daemon: Daemon, name: str, **variables: str) -> None:
    assert (await daemon.memory(name))["variables"] == variables
    assert await daemon.is_well(name)


async def test_the_second_sleep_is_a_difference_and_so_is_every_later_one(world: World) -> None:
    async with world.daemon() as daemon:
        before = world.leftovers()
        await sleep_again(daemon)
        assert manifest(daemon).changes
        known: dict[str, str] = {}
        for number in range(3):
            await daemon.fleet.restore("src")
            await settled(world, captures=0)
            await check(daemon, "src", first="1", second="2", **known)
            known = {"n": str(number)}
            await daemon.run("src", "set", "n", str(number))
            await daemon.fleet.standby("src")
            assert manifest(daemon).changes
            await without_base(daemon)
        await daemon.fleet.delete("src")
        await settled(world, captures=0, layers=0)
        assert world.leftovers() == before


async def test_copies_and_snapshots_of_it_are_wholes(world: World) -> None:
    async with world.daemon() as daemon:
        await sleep_again(daemon)
        await daemon.snapshots.create("src", SnapshotKind.STANDBY, "then", {})
        await daemon.fleet.fork("src", ["asleep"])
        await daemon.fleet.fork("src", ["awake"], target=State.RUNNING)
        await daemon.fleet.delete("src")
        await daemon.run("awake", "set", "second", "its own")
        await daemon.fleet.restore("asleep")
        await check(daemon, "asleep", first="1", second="2")
        assert (await daemon.snapshots.verify("then")).is_whole
        async with daemon.snapshots.export("then") as chunks:
            data = b"".join([chunk async for chunk in chunks])

        async def again() -> object:
            yield data

        await daemon.snapshots.import_file(again(), "other")  # type: ignore[arg-type]
        for ref in ("then", "other"):
            await daemon.snapshots.fork(ref, [f"of-{ref}"])
            await check(daemon, f"of-{ref}", first="1", second="2")
        await daemon.fleet.standby("awake")
        assert manifest(daemon, "awake").changes
        await daemon.fleet.restore("awake")
        await check(daemon, "awake", first="1", second="its own")


async def test_it_is_compressed_as_a_whole(world: World) -> None:
    ask = CompressionAsk(Compression.of(), is_said=True)
    async with world.daemon() as daemon:
        await sleep_again(daemon)
        snapshot = await daemon.snapshots.create("src", SnapshotKind.STANDBY, "then", {}, ask)
        assert snapshot.point.capture is not None
        packed = await compressed(daemon, snapshot.point.capture)
        assert not (packed.parent / "changes").exists()
        await daemon.fleet.restore("src")
        await check(daemon, "src", first="1", second="2")
        # What was unpacked is a base as good as any.
        await daemon.fleet.standby("src")
        assert manifest(daemon).changes
        await daemon.fleet.restore("src")
        await daemon.fleet.standby("src", ask)
        assert manifest(daemon).changes is None
        await compressed(daemon, capture_of(daemon, "src"))
        await daemon.fleet.restore("src")
        await check(daemon, "src", first="1", second="2")


async def test_the_base_outlives_the_daemon_and_not_the_run(world: World) -> None:
    async with world.daemon() as daemon:
        await sleep_again(daemon)
        await daemon.fleet.restore("src")
    async with world.daemon() as daemon:
        await daemon.run("src", "set", "third", "3")
        await daemon.fleet.standby("src")
        assert manifest(daemon).changes
    async with world.daemon() as daemon:
        await daemon.fleet.restore("src")
        await check(daemon, "src", first="1", second="2", third="3")
        assert base(daemon).exists()
        await daemon.fleet.stop("src")
        await without_base(daemon)
        await daemon.fleet.start("src")
        await daemon.fleet.standby("src")
        assert manifest(daemon).changes is None


@pytest.mark.parametrize("call", ["copy_ahead", "save_devices", "copy_rest"])
async def test_a_sleep_that_fails_can_be_a_difference_later(world: World, call: Call) -> None:
    async with world.daemon() as daemon:
        await sleep_again(daemon)
        await daemon.fleet.restore("src")
        daemon.faults.fail(call, VmmFailed("no"))
        with pytest.raises(RametError):
            await daemon.fleet.standby("src")
        await settled(world, captures=0)
        await check(daemon, "src", first="1", second="2")
        await daemon.fleet.standby("src")
        assert manifest(daemon).changes
        await daemon.fleet.restore("src")
        await check(daemon, "src", first="1", second="2")
