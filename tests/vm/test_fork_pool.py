"""Children made ahead of their fork, by real VMMs: what they load and read is of the moment of the fork."""

import anyio
import anyio.lowlevel
import pytest

from ramet.core.snapshot import SnapshotKind
from tests.vm.site import Children, Site, vmm_pids

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

FILLED_TIMEOUT_S = 60.0
FILE_BYTES = 3_000_000
DROP_CACHES = "sync; echo 3 >/proc/sys/vm/drop_caches"


async def _fill(site: Site, name: str, size: int) -> None:
    await site.fleet.set_fork_pool(name, size)
    with anyio.fail_after(FILLED_TIMEOUT_S):
        while (status := site.fleet.get(name).fork_pool) is None or status.waiting_count < size:
            await anyio.lowlevel.checkpoint()


async def test_a_child_made_ahead_has_memory_and_disk_of_the_moment_of_its_fork(
    site: Site, source: str, children: Children
) -> None:
    await children.fork(source, "pooled")
    await _fill(site, "pooled", 2)
    waiting = set(vmm_pids(site.folder))
    # More than fits what a waiting VMM may have read of the disk: its tables change, and the memory does.
    await site.sh("pooled", f"head -c {FILE_BYTES} /dev/urandom >/var/late; md5sum /var/late >/dev/shm/sum")
    await site.sh("pooled", "echo memory2 >/dev/shm/state; echo disk2 >/var/state; sync")
    outcomes = await children.fork("pooled", "first", "second")
    for outcome in outcomes:
        name = outcome.name
        assert site.rig(name).vm.runtime.pid in waiting
        assert outcome.timings_ms.keys().isdisjoint({"vmm_start", "network", "disk"})
        state = await site.get_state(name)
        assert (state["memory"], state["disk"], state["hostname"]) == ("memory2", "disk2", name)
        assert state["mac"] == site.fleet.get(name).mac
        await site.sh(name, f"{DROP_CACHES}; md5sum -c /dev/shm/sum")
    # The disk that was opened before the fork is the child's own after it, over any number of rounds.
    await site.sh("first", f"head -c {FILE_BYTES} /dev/urandom >/var/late; md5sum /var/late >/dev/shm/sum")
    await site.sh("first", f"{DROP_CACHES}; md5sum -c /dev/shm/sum")
    await site.sh("second", f"{DROP_CACHES}; md5sum -c /dev/shm/sum")
    await site.sh("pooled", f"{DROP_CACHES}; md5sum -c /dev/shm/sum")

    with anyio.fail_after(FILLED_TIMEOUT_S):
        while (status := site.fleet.get("pooled").fork_pool) is None or status.waiting_count < 2:
            await anyio.lowlevel.checkpoint()
    await site.fleet.set_fork_pool("pooled", 0)
    with anyio.fail_after(FILLED_TIMEOUT_S):
        while site.fleet.get("pooled").fork_pool is not None:
            await anyio.lowlevel.checkpoint()
    assert len(vmm_pids(site.folder)) == len(site.effects.rigs)


async def test_a_child_made_ahead_can_be_stopped_started_put_to_sleep_and_forked(
    site: Site, source: str, children: Children
) -> None:
    await children.fork(source, "pooled2")
    await _fill(site, "pooled2", 1)
    (outcome,) = await children.fork("pooled2", "child2")
    assert "vmm_start" not in outcome.timings_ms
    await site.fleet.set_fork_pool("pooled2", 0)
    await site.fleet.standby("child2")
    await site.fleet.restore("child2")
    await site.sh("child2", "echo own >/var/own; sync")
    await children.fork("child2", "grandchild2")
    assert await site.sh("grandchild2", "cat /var/own") == "own\n"
    assert (await site.get_state("grandchild2"))["hostname"] == "grandchild2"
    await site.fleet.stop("child2")
    await site.fleet.start("child2")
    assert await site.sh("child2", "hostname; cat /var/own") == "child2\nown\n"


async def test_forks_of_a_snapshot_take_vmms_that_wait_and_are_themselves(
    site: Site, source: str, children: Children
) -> None:
    await children.fork(source, "kept")
    await site.sh("kept", "echo memory3 >/dev/shm/state; echo disk3 >/var/state; sync")
    snapshots = site.parts.snapshots
    snapshot = await snapshots.create("kept", SnapshotKind.STANDBY, "warm", {})
    try:
        snapshots.set_fork_pool(snapshot.id, 2)
        with anyio.fail_after(FILLED_TIMEOUT_S):
            while (status := snapshots.fork_pool(snapshot)) is None or status.waiting_count < 2:
                await anyio.lowlevel.checkpoint()
        waiting = set(vmm_pids(site.folder))
        children.names += ["third", "fourth"]
        outcomes = await snapshots.fork(snapshot.id, ["third", "fourth"])
        assert [outcome.error for outcome in outcomes] == [None, None]
        for name in ("third", "fourth"):
            assert site.rig(name).vm.runtime.pid in waiting
            state = await site.get_state(name)
            assert (state["memory"], state["disk"], state["hostname"]) == ("memory3", "disk3", name)
        await site.sh("third", "echo own >/var/state; sync")
        assert (await site.get_state("fourth"))["disk"] == "disk3"
    finally:
        await snapshots.delete(snapshot.id)
        with anyio.fail_after(FILLED_TIMEOUT_S):
            while snapshots.fork_pool(snapshot) is not None:
                await anyio.lowlevel.checkpoint()
