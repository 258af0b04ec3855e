"""Real guests sleep, wake and are copied in their sleep, and not a byte of theirs is lost or another's."""

import time

import anyio
import pytest

from ramet.core.compression import Compression, CompressionAlgorithm, CompressionAsk
from ramet.core.snapshot import SnapshotKind
from ramet.core.spec import State
from ramet.instance.fleet_types import StandbyInterrupted
from ramet.snapshots.manifest import Manifest
from ramet.vmm.port import MEMORY_FILE_NAME
from tests.vm.site import Children, Site, vmm_pids

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

ROUND_COUNT = 20
COMPRESSED_TIMEOUT_S = 120.0
MIB = 1 << 20

WRITE = """
head -c $((RANDOM * 8 + 4096)) /dev/urandom >/var/data.$1
head -c $((RANDOM * 8 + 4096)) /dev/urandom >/dev/shm/data.$1
"""
SUMS = "cd / && sha256sum var/data.* dev/shm/data.* 2>/dev/null | sort"


def stored(site: Site, name: str) -> Manifest:
    capture = site.fleet.get(name).record.capture
    assert capture is not None
    return site.effects.captures.manifest(capture)


async def test_what_is_written_before_a_sleep_is_there_after_it_and_nobody_elses(
    site: Site, source: str, children: Children
) -> None:
    """Twenty rounds: write, sleep, copy in the sleep, wake, compare; copies write, and nobody sees it."""
    await children.fork(source, "sleeper")
    kept: list[tuple[str, str]] = []
    is_difference: list[bool] = []
    for number in range(ROUND_COUNT):
        await site.sh("sleeper", WRITE.replace("$1", str(number)))
        sums = await site.sh("sleeper", SUMS)
        await site.fleet.standby("sleeper")
        is_difference.append(stored(site, "sleeper").changes is not None)
        names = [f"copy-{number}-{index}" for index in range(2)]
        children.names.extend(names)
        outcomes = await site.fleet.fork("sleeper", names, target=State.RUNNING)
        assert [outcome.error for outcome in outcomes] == [None, None]
        if number % 5 == 0:
            snapshot = await site.parts.snapshots.create("sleeper", SnapshotKind.STANDBY, None, {})
            assert (await site.parts.snapshots.verify(snapshot.id)).is_whole
            kept.append((snapshot.id, sums))
        for name in names:
            assert await site.sh(name, SUMS) == sums
            await site.sh(name, f"echo {name} | tee /var/data.{number} >/dev/shm/data.{number}; sync")
        await site.fleet.restore("sleeper")
        assert await site.sh("sleeper", SUMS) == sums
        for name in names:
            assert await site.sh(name, f"cat /var/data.{number} /dev/shm/data.{number}") == f"{name}\n" * 2
            await site.fleet.delete(name)
    # At first it was the child of a live fork, and stood on no file; of later sleeps only changes are stored.
    assert (is_difference[0], any(is_difference[1:])) == (False, True)
    for snapshot_id, sums in kept:
        children.names.append("from-snapshot")
        (outcome,) = await site.parts.snapshots.fork(snapshot_id, ["from-snapshot"])
        assert outcome.error is None
        assert await site.sh("from-snapshot", SUMS) == sums
        # All who woke from it, and wrote, have changed none of it.
        verified = await site.parts.snapshots.verify(snapshot_id)
        assert (verified.checksums, verified.is_whole) == ("compared", True)
        await site.fleet.delete("from-snapshot")
        await site.parts.snapshots.delete(snapshot_id)


async def test_what_sleeps_in_compressed_memory_wakes_with_every_byte(
    site: Site, source: str, children: Children
) -> None:
    await children.fork(source, "sleeper")
    await site.sh("sleeper", WRITE.replace("$1", "0"))
    sums = await site.sh("sleeper", SUMS)
    for algorithm in CompressionAlgorithm:
        await site.fleet.standby("sleeper", CompressionAsk(Compression.of(algorithm), is_said=True))
        capture = site.fleet.get("sleeper").record.capture
        assert capture is not None
        raw = site.effects.folder.captures / capture / MEMORY_FILE_NAME
        with anyio.fail_after(COMPRESSED_TIMEOUT_S):
            while raw.exists():
                await anyio.lowlevel.checkpoint()
        assert site.effects.captures.compressor.state(capture).state == "compressed"
        name = f"copy-{algorithm}"
        children.names.append(name)
        (outcome,) = await site.fleet.fork("sleeper", [name], target=State.RUNNING)
        assert outcome.error is None
        await site.fleet.restore("sleeper")
        for awake in ("sleeper", name):
            assert await site.sh(awake, SUMS) == sums
        await site.fleet.delete(name)


async def test_a_sleeper_takes_no_memory_and_wakes_as_itself(
    site: Site, source: str, children: Children
) -> None:
    await children.fork(source, "sleeper")
    before, pids = await site.get_state("sleeper"), vmm_pids(site.folder)
    await site.sh("sleeper", "sleep 1000 >/dev/null 2>&1 & echo $! >/dev/shm/pid")
    view = await site.fleet.standby("sleeper")
    assert view.record.state is State.STANDBY
    while len(vmm_pids(site.folder)) != len(pids) - 1:
        await anyio.lowlevel.checkpoint()
    await site.fleet.restore("sleeper")
    assert await site.get_state("sleeper") == before
    assert await site.sh("sleeper", "kill -0 $(cat /dev/shm/pid) && echo alive") == "alive\n"
    drift = abs(float(await site.sh("sleeper", "date +%s")) - time.time())
    assert drift < 5


async def test_a_wake_in_the_middle_of_the_writing_lets_the_guest_go_on(
    site: Site, source: str, children: Children
) -> None:
    await children.fork(source, "sleeper")
    pids = vmm_pids(site.folder)

    async def sleep() -> None:
        with pytest.raises(StandbyInterrupted):
            await site.fleet.standby("sleeper")

    async with anyio.create_task_group() as group:
        group.start_soon(sleep)
        while site.fleet.get("sleeper").record.state is not State.PAUSED:
            await anyio.lowlevel.checkpoint()
        await site.fleet.restore("sleeper")
    assert site.fleet.get("sleeper").record.state is State.RUNNING
    assert vmm_pids(site.folder) == pids
    assert (await site.get_state("sleeper"))["hostname"] == "sleeper"
    await site.fleet.standby("sleeper")
    await site.fleet.restore("sleeper")
    assert (await site.get_state("sleeper"))["hostname"] == "sleeper"


async def test_a_running_instance_is_copied_to_sleep_and_to_stop_and_goes_on(
    site: Site, source: str, children: Children
) -> None:
    await children.fork(source, "src")
    await site.sh("src", "echo memory1 >/dev/shm/state; echo disk1 >/var/state")
    for target, expected in ((State.STANDBY, ("memory1", "disk1")), (State.STOPPED, ("", "disk1"))):
        children.names.append("copy")
        (outcome,) = await site.fleet.fork("src", ["copy"], target=target)
        assert outcome.view is not None, outcome.error
        assert outcome.view.record.state is target
        await site.sh("src", f"echo {target} >/var/after")
        await site.fleet.bring_to("copy", State.RUNNING)
        memory = await site.sh("copy", "cat /dev/shm/state 2>/dev/null || true")
        assert (memory.strip(), (await site.sh("copy", "cat /var/state")).strip()) == expected
        assert await site.sh("copy", "hostname; ls /var/after 2>/dev/null || true") in ("copy\n",)
        await site.fleet.delete("copy")
        await site.sh("src", "rm /var/after")
