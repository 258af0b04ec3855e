"""There is room for it, or it is refused at once and nothing was touched."""

import anyio
import pytest

from ramet.admission.admission import Admission
from ramet.admission.demand import NOTHING, Demand, Resource
from ramet.admission.ledger import InsufficientResources, Limit
from ramet.core.spec import State
from ramet.vmm.fake.faults import Faults
from ramet.vmm.port import VmmFailed
from tests.effects.world import MEMORY_BYTES, OVERLAY_BYTES, Daemon, World

pytestmark = [pytest.mark.anyio, pytest.mark.netns]


def give(world: World, *, guests: int | None = None, disks: int | None = None) -> None:
    """Give the daemons to come memory for as many guests, and disk for as many instances."""
    limits = [
        Limit(resource, count * size_bytes)
        for resource, count, size_bytes in (
            (Resource.MEMORY, guests, MEMORY_BYTES),
            (Resource.DISK, disks, OVERLAY_BYTES),
        )
        if count is not None
    ]

    def prepare(site: object) -> None:
        site.admission = Admission(limits)  # type: ignore[attr-defined]

    world.prepare = prepare


def held(daemon: Daemon) -> Demand:
    return daemon.site.admission.ledger.total


async def test_an_instance_there_is_no_room_for_is_refused_and_leaves_name_and_slot_free(
    world: World,
) -> None:
    give(world, guests=1)
    async with world.daemon() as daemon:
        await daemon.fleet.create("first", daemon.spec)
        before, calls = world.leftovers(), len(daemon.faults.calls)
        with pytest.raises(InsufficientResources, match="memory for instance more: 1 MiB asked, 0 of 1"):
            await daemon.fleet.create("more", daemon.spec)
        assert world.leftovers() == before
        assert len(daemon.faults.calls) == calls
        assert daemon.site.network.statistics().held_count == 1
        assert held(daemon) == Demand(1, MEMORY_BYTES, OVERLAY_BYTES)
        await daemon.fleet.delete("first")
        assert held(daemon) == NOTHING
        await daemon.fleet.create("more", daemon.spec)


async def test_insufficient_resources_refuse_the_children_of_a_burst_there_is_no_room_for(
    world: World,
) -> None:
    give(world, guests=4)  # The source, a capture of it, two children.
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        outcomes = await daemon.fleet.fork("src", [f"kid-{number}" for number in range(5)])
        assert [outcome.error is None for outcome in outcomes] == [True, True, False, False, False]
        for outcome in outcomes[2:]:
            assert isinstance(outcome.error, InsufficientResources)
            assert outcome.error.code == "insufficient_resources"
            assert outcome.error.fields["resource"] == "memory"
        assert [view.record.name for view in daemon.fleet.list()] == ["src", "kid-0", "kid-1"]
        found = world.leftovers()
        assert all(len(found[kind]) == 3 for kind in ("processes", "folders", "records", "taps"))
        assert not found["journal"]
        assert daemon.site.network.statistics().held_count == 3
        assert all([await daemon.is_well(name) for name in ("src", "kid-0", "kid-1")])
        for name in ("kid-0", "kid-1"):
            await daemon.fleet.delete(name)
        assert held(daemon) == Demand(1, MEMORY_BYTES, OVERLAY_BYTES)


async def test_a_fork_without_room_for_a_capture_is_refused_and_the_source_is_not_touched(
    world: World,
) -> None:
    give(world, guests=1)
    async with world.daemon() as daemon:
        source = await daemon.fleet.create("src", daemon.spec)
        before, calls = world.leftovers(), len(daemon.faults.calls)
        (outcome,) = await daemon.fleet.fork("src", ["child"])
        assert isinstance(outcome.error, InsufficientResources)
        assert "a capture of instance src" in outcome.error.message
        assert world.leftovers() == before
        assert len(daemon.faults.calls) == calls
        assert daemon.fleet.get("src") == source


async def test_a_capture_is_held_until_the_last_child_on_it_has_ended(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.fleet.fork("src", ["a", "b"])
        captures = daemon.site.admission.captures
        assert (captures.count, captures.memory_bytes) == (1, MEMORY_BYTES)
        await daemon.fleet.delete("src")
        await daemon.fleet.stop("a")
        assert held(daemon).memory_bytes == 2 * MEMORY_BYTES
        await daemon.fleet.stop("b")
        assert (captures.count, held(daemon)) == (0, Demand(disk_bytes=2 * OVERLAY_BYTES))


async def test_a_start_there_is_no_room_for_is_refused_and_the_instance_stays_stopped(world: World) -> None:
    give(world, guests=1)
    async with world.daemon() as daemon:
        await daemon.fleet.create("sleeper", daemon.spec)
        await daemon.fleet.stop("sleeper")
        await daemon.fleet.create("other", daemon.spec)
        while daemon.site.network.statistics().attached_count > 1:
            await anyio.lowlevel.checkpoint()
        stopped, before = daemon.fleet.get("sleeper"), world.leftovers()
        with pytest.raises(InsufficientResources, match="memory for instance sleeper"):
            await daemon.fleet.start("sleeper")
        assert (daemon.fleet.get("sleeper"), world.leftovers()) == (stopped, before)
        await daemon.fleet.stop("other")
        assert (await daemon.fleet.start("sleeper")).record.state is State.RUNNING


async def test_a_wake_there_is_no_room_for_is_refused_and_the_instance_sleeps_on(world: World) -> None:
    give(world, guests=1)
    async with world.daemon() as daemon:
        await daemon.fleet.create("sleeper", daemon.spec)
        await daemon.fleet.standby("sleeper")
        assert held(daemon) == Demand(disk_bytes=OVERLAY_BYTES + MEMORY_BYTES)
        await daemon.fleet.create("other", daemon.spec)
        asleep = daemon.fleet.get("sleeper")
        with pytest.raises(InsufficientResources, match="memory for instance sleeper"):
            await daemon.fleet.restore("sleeper")
        assert daemon.fleet.get("sleeper") == asleep
        await daemon.fleet.delete("other")
        assert (await daemon.fleet.restore("sleeper")).record.state is State.RUNNING
        assert held(daemon) == Demand(1, MEMORY_BYTES, OVERLAY_BYTES)


async def test_a_full_host_can_still_be_emptied(world: World) -> None:
    give(world, guests=1, disks=2)
    async with world.daemon() as daemon:
        await daemon.fleet.create("a", daemon.spec)
        await daemon.fleet.stop("a")
        await daemon.fleet.create("b", daemon.spec)
        await daemon.fleet.stop("b")
        with pytest.raises(InsufficientResources, match="disk"):
            await daemon.fleet.create("c", daemon.spec)
        await daemon.fleet.start("a")
        await daemon.fleet.delete("b")
        await daemon.fleet.delete("a")
        assert held(daemon) == NOTHING


async def test_what_runs_when_a_daemon_starts_is_never_refused(world: World) -> None:
    async with world.daemon() as daemon:
        await daemon.fleet.create("src", daemon.spec)
        await daemon.fleet.fork("src", ["a", "b"])
        await daemon.fleet.stop("b")
    give(world, guests=1)
    async with world.daemon() as daemon:
        assert [view.record.state for view in daemon.fleet.list()] == [
            State.RUNNING,
            State.RUNNING,
            State.STOPPED,
        ]
        assert held(daemon).cpu_count == 2
        assert held(daemon).disk_bytes == 3 * OVERLAY_BYTES
        with pytest.raises(InsufficientResources):
            await daemon.fleet.create("more", daemon.spec)
        with pytest.raises(InsufficientResources):
            await daemon.fleet.start("b")
        await daemon.fleet.delete("src")
        await daemon.fleet.delete("a")
        await daemon.fleet.start("b")


async def test_what_could_not_be_made_is_given_back(world: World) -> None:
    give(world, guests=3)
    faults = Faults()
    async with world.daemon(faults) as daemon:
        faults.fail("boot", VmmFailed("no VMM"))
        with pytest.raises(VmmFailed):
            await daemon.fleet.create("src", daemon.spec)
        assert held(daemon) == NOTHING
        await daemon.fleet.create("src", daemon.spec)
        faults.fail("copy_ahead", VmmFailed("no copy"))
        (outcome,) = await daemon.fleet.fork("src", ["child"])
        assert isinstance(outcome.error, VmmFailed)
        assert held(daemon) == Demand(1, MEMORY_BYTES, OVERLAY_BYTES)
        assert daemon.site.admission.captures.count == 0
