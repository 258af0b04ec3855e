"""What must hold of a host in a quiet moment, whatever was done and went wrong before it.

Everything the host knows is compared with the records: nothing is there that no record names, nothing is held
twice, and each state means on the host what it says.
"""

import os
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import anyio

from ramet.admission.demand import demand_of, has_vmm
from ramet.core.ids import CaptureId, InstanceId, LayerId
from ramet.core.spec import InstanceRecord, State
from ramet.net.firewall import Element
from tests.effects.model_chaos import ChaosFaults
from tests.effects.world import Daemon, World

SETTLE_TIMEOUT_S = 20.0
ANSWER_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.02
SETTLED = {State.RUNNING, State.STOPPED, State.STANDBY, State.UNKNOWN}
AT_REST = {State.STOPPED, State.STANDBY}


class Violation(AssertionError):
    """The host is not what it must be."""


def demand(condition: object, what: str, *details: object) -> None:
    if not condition:
        raise Violation(f"{what}: " + " | ".join(map(str, details)))


async def check_until_well(
    world: World, daemon: Daemon, also: Callable[[Daemon], Awaitable[None]] | None = None
) -> None:
    """Check everything, again and again until it holds: what is done in the background has its time.

    Args:
        also: checks more.

    Raises:
        Violation: something does not come to hold.
    """
    until = anyio.current_time() + SETTLE_TIMEOUT_S
    while True:
        try:
            await check(world, daemon)
            if also is not None:
                await also(daemon)
            return
        except Violation:
            if anyio.current_time() > until:
                raise
        await anyio.sleep(POLL_INTERVAL_S)


async def check(world: World, daemon: Daemon) -> None:
    """Check everything once."""
    records = {view.record.id: view.record for view in daemon.fleet.list()}
    for record in records.values():
        demand(record.state in SETTLED, "an instance stays on its way", record)
        if record.state is not State.UNKNOWN:
            is_asleep = record.state is State.STANDBY
            demand(is_asleep == (record.capture is not None), "asleep without memory, or awake with", record)
            demand(record.becoming is None, "it is not what was asked for, and nobody waits", record)
    check_pools(daemon, records)
    berths = berth_records(daemon)
    hosted = {**records, **berths}
    found = world.leftovers()
    check_records(world, records)
    journal = {f"berth {berth}" for berth in berths}
    demand(found["journal"] == journal, "journal entries of nobody, or none", found["journal"], journal)
    check_processes(world, hosted)
    check_files(daemon, hosted, found)
    check_stored(daemon, records, found)
    check_network(daemon, hosted, found)
    check_memory(daemon, records)
    check_admission(daemon, hosted)
    for record in records.values():
        if record.state is State.RUNNING:
            await check_running(daemon, record)
    check_descriptors(daemon)


def check_pools(daemon: Daemon, records: dict[InstanceId, InstanceRecord]) -> None:
    """Each pool that is wanted is full, and there is no other."""
    pools = daemon.fleet._host.pools  # type: ignore[attr-defined]
    wanted = {i for i, record in records.items() if record.spec.fork_pool and record.state is State.RUNNING}
    demand(pools._pools.keys() >= wanted, "a pool is not there", pools._pools.keys() ^ wanted)
    kept = {snapshot.id: snapshot.fork_pool for snapshot in daemon.snapshots.list() if snapshot.fork_pool}
    for source, size in [*((i, records[i].spec.fork_pool) for i in wanted), *kept.items()]:
        status = pools.status(source)
        demand(status is not None and status.waiting_count == size, "a pool is not full", source, status)
    demand(not pools._claimed, "berths are claimed by nobody", pools._claimed)
    parents = {*wanted, *kept}
    strays = [berth for berth in pools.berths() if berth.record.identity.parent not in parents]
    demand(not strays, "berths of nobody", strays)


def berth_records(daemon: Daemon) -> dict[InstanceId, InstanceRecord]:
    """Return the children made ahead as what they are to the host: instances that run."""
    found: dict[InstanceId, InstanceRecord] = {}
    for berth in daemon.fleet._host.pools.berths():  # type: ignore[attr-defined]
        demand(berth.vm is not None, "a berth is just being made", berth)
        found[berth.id] = replace(
            berth.record, state=State.RUNNING, layer=berth.layer, runtime=berth.vm.runtime
        )
    return found


def stored_records(world: World) -> dict[InstanceId, InstanceRecord]:
    """Return the records on disk."""
    path = world.folder / "data" / "state.db"
    if not path.exists():
        return {}
    database = sqlite3.connect(path)
    try:
        if not database.execute("SELECT 1 FROM sqlite_master WHERE name = 'instances'").fetchall():
            return {}  # Killed before its first transaction.
        rows = [InstanceRecord.from_json(row[0]) for row in database.execute("SELECT record FROM instances")]
    finally:
        database.close()
    return {record.id: record for record in rows}


def check_records(world: World, records: dict[InstanceId, InstanceRecord]) -> None:
    """The disk says of each instance what is published."""
    stored = stored_records(world)
    demand(stored.keys() == records.keys(), "records and instances differ", stored.keys() ^ records.keys())
    for instance, record in records.items():
        ours, theirs = record, stored[instance]
        if ours.state is State.UNKNOWN:
            continue  # A start concludes that again from the host; nothing is lost with it.
        same = (ours.state, ours.layer, ours.capture, ours.runtime, ours.is_deleting) == (
            theirs.state,
            theirs.layer,
            theirs.capture,
            theirs.runtime,
            theirs.is_deleting,
        )
        demand(same, "a record on disk is behind", ours, theirs)
    names = Counter(record.name for record in records.values())
    demand(len(names) == len(records), "a name is held twice", names)


def check_processes(world: World, records: dict[InstanceId, InstanceRecord]) -> None:
    """One VMM for each running instance, none for a stopped one."""
    processes = world.processes()
    owners = Counter(processes.values())
    demand(not owners or max(owners.values()) == 1, "two VMMs of one instance", processes)
    for pid, instance in processes.items():
        demand(instance in records, "a VMM of nobody", pid, instance)
        # One that could not be ended when its start had failed is ended with the next start, or deleted.
        is_over = records[instance].state in AT_REST and not records[instance].state_error
        demand(not is_over, "a VMM of a stopped one", records[instance])
    for record in records.values():
        if record.state is State.RUNNING:
            demand(record.runtime is not None, "running without a runtime", record)
            pid = record.runtime.pid if record.runtime else 0
            demand(processes.get(pid) == record.id, "running without a VMM", record)


def check_files(
    daemon: Daemon, records: dict[InstanceId, InstanceRecord], found: dict[str, set[str]]
) -> None:
    """Folders and layers are those of instances, and all that these need is there."""
    unknown = {instance for instance, record in records.items() if record.state is State.UNKNOWN}
    whole = {
        instance
        for instance, record in records.items()
        if record.layer is not None and instance not in unknown
    }
    demand(found["folders"] <= records.keys(), "folders of nobody", found["folders"] - records.keys())
    without = [records[instance] for instance in whole - found["folders"]]
    demand(not without, "instances without their folder", *without)
    layers, needed, broken = daemon.site.layers, set[str](), set[str]()
    tops = Counter(record.layer for record in records.values() if record.layer is not None)
    demand(not tops or max(tops.values()) == 1, "two instances write to one layer", tops)
    for record in records.values():
        if record.layer is None:
            continue
        try:
            needed |= {path.name for path, form in layers.chain(record.layer) if form == "qcow2"}
        except Exception as error:
            broken.add(f"{record.name} {record.state}: {error}")
            demand(record.state is State.UNKNOWN, "an instance has lost its disk", record, error)
    for snapshot in daemon.snapshots.list():
        needed |= {path.name for path, form in layers.chain(snapshot.point.layer) if form == "qcow2"}
    pins = Counter(snapshot.point.layer for snapshot in daemon.snapshots.list())
    demand(layers._pins == pins, "layers are pinned for nobody", layers._pins, pins)
    # One that could not be deleted is tried again with the next.
    for layer in layers._undeleted:
        needed |= {path.name for path, form in layers.chain(layer) if form == "qcow2"}
    strays = found["layers"] - needed
    held_strays = {name for name in strays if layers.id_of(Path(name)) in layers._tops}
    demand(not strays, "layers of nobody", strays, "of these held:", held_strays, layers._backing)
    demand(needed <= found["layers"], "layers are missing", needed - found["layers"], broken)
    parts = list((daemon.site.folder.layers).glob("*.part"))
    demand(not parts, "half-made files", parts)
    held = layers.statistics()["held"]
    demand(held <= len(tops), "layers are held for nobody", layers._tops - tops.keys(), tops)


def check_stored(
    daemon: Daemon, records: dict[InstanceId, InstanceRecord], found: dict[str, set[str]]
) -> None:
    """Of memory on the disk, each sleeper and each snapshot has its own, and there is no other."""
    snapshots = daemon.snapshots.list()
    files = {f"{snapshot.id}.json" for snapshot in snapshots}
    demand(found["snapshots"] == files, "snapshots and their files differ", found["snapshots"] ^ files)
    holders: dict[str, CaptureId] = {
        f"snapshot {snapshot.id}": snapshot.point.capture
        for snapshot in snapshots
        if snapshot.point.capture is not None
    }
    unknown = {record.id for record in records.values() if record.state is State.UNKNOWN}
    for record in records.values():
        if record.capture is not None and record.id not in unknown:
            holders[record.id] = record.capture
    captures = daemon.site.captures
    held = {holder: set(of) for holder, of in captures._held_by.items() if holder not in unknown}
    demand(held == {holder: {of} for holder, of in holders.items()}, "held for nobody", held, holders)
    of_unknown = {capture for instance in unknown for capture in captures._held_by.get(instance, ())}
    needed = set(holders.values()) | of_unknown
    demand(found["captures"] == needed, "stored memory of nobody, or none", found["captures"] ^ needed)
    for capture in needed:
        captures.manifest(capture)


def check_network(
    daemon: Daemon, records: dict[InstanceId, InstanceRecord], found: dict[str, set[str]]
) -> None:
    """Slots, TAPs and admissions are those of instances, each held once."""
    network = daemon.site.network
    slots = Counter(record.identity.slot for record in records.values())
    demand(not slots or max(slots.values()) == 1, "a slot is held twice", slots)
    demand(network.statistics().held_count <= len(records), "slots are held for nobody", network.statistics())
    expected, allowed, elements = set[str](), set[str](), set[str]()
    for record in records.values():
        if record.state is State.UNKNOWN and record.id not in network._pool:
            continue  # Released before its destruction failed.
        endpoint = network.endpoint(record.id)
        demand(endpoint.slot == record.identity.slot, "a record names another slot", record, endpoint)
        if record.state is State.RUNNING:
            expected.add(endpoint.tap_name)
        # What could not be made and not be undone either says so, until it is started or deleted.
        is_stuck = record.id in network._stuck and record.state_error
        # A VMM that could not be ended when it had been put to sleep is ended by the next wake, or deletion.
        is_stuck = is_stuck or (record.state is State.STANDBY and record.state_error)
        if record.state not in AT_REST or is_stuck:
            allowed.add(endpoint.tap_name)
            elements.add(str(Element.of(endpoint)))
    demand(found["taps"] >= expected, "running without a TAP", expected - found["taps"])
    demand(found["taps"] <= allowed, "TAPs of nobody", found["taps"] - allowed, records.values())
    admitted = {name for name in allowed if any(f'"{name}"' in text for text in found["admissions"])}
    demand(admitted >= expected, "running without an admission", expected - admitted)
    strangers = [text for text in found["admissions"] if not any(f'"{name}"' in text for name in allowed)]
    demand(not strangers, "admissions of nobody", strangers)
    told = {record.id for record in records.values() if record.state is State.UNKNOWN or record.state_error}
    demand(network._stuck <= told, "endpoints are stuck and nobody says so", network._stuck - told)


def check_memory(daemon: Daemon, records: dict[InstanceId, InstanceRecord]) -> None:
    """The daemon holds nothing of instances that are gone, or of operations that are over."""
    site, performer = daemon.site, daemon.fleet._host
    running = {i for i, record in records.items() if record.state is State.RUNNING}
    settled = {i for i, record in records.items() if record.state is not State.UNKNOWN}
    demand(site.rigs.keys() >= running, "running without a rig", running - site.rigs.keys())
    strays = (site.rigs.keys() & settled) - running | (site.rigs.keys() - records.keys())
    demand(not strays, "rigs of instances that do not run", strays)
    unended = site.unended - records.keys()
    demand(not unended, "VMMs are to be ended of instances that are gone", unended)
    demand(daemon.fleet._names.keys() == {r.name for r in records.values()}, "names of nobody")
    for member in ("_making", "_timings", "_suspending"):
        kept = getattr(performer, member)
        demand(
            kept.keys() <= records.keys() if member == "_timings" else not kept, f"{member} of nobody", kept
        )
    captures = performer._captures  # type: ignore[attr-defined]
    points = performer._points  # type: ignore[attr-defined]
    for flights in (captures.live, captures.stored, points._stopped):
        demand(not flights._boarding and not flights._runways, "captures of nobody", flights._boarding)
    borrowed = sum(limiter.borrowed_tokens for limiter in site.stages.limiters.values())
    demand(borrowed == 0, "a place in a stage is held by nobody", borrowed)


def check_admission(daemon: Daemon, records: dict[InstanceId, InstanceRecord]) -> None:
    """Of the host's resources, each instance holds what its record says, and nobody else holds any."""
    admission = daemon.site.admission
    for record in records.values():
        held, need = admission.ledger.held(record.id), demand_of(record)
        is_exact = record.state is not State.UNKNOWN  # A start may have told of it, and it holds more.
        demand(held == need if is_exact else held.larger(need) == held, "holds another amount", record, held)
    captures = admission.captures
    demand(not captures._open and not captures._awaited, "captures are counted for nobody", vars(captures))
    without = [i for i, record in records.items() if not has_vmm(record)]
    strays = [i for i in captures._used if i in without or i not in records]
    demand(not strays, "captures are counted for whom has no VMM", strays)
    of_volumes = [owner for owner in admission.ledger._held if owner.startswith("volume ")]
    owners = len(records) + captures.count + len(of_volumes)
    demand(admission.ledger.owner_count == owners, "resources are held by nobody", admission.ledger._held)


async def check_running(daemon: Daemon, record: InstanceRecord) -> None:
    """It answers, is itself, and neither its processors nor its workload stand still."""
    rig = daemon.site.rigs[record.id]
    try:
        with anyio.fail_after(ANSWER_TIMEOUT_S):
            health = await (await rig.channel(5)).health()
            is_paused = await rig.vm.is_paused()
            top = daemon.site.layers.id_of(await rig.vm.top_layer())  # type: ignore[attr-defined]
            memory = await daemon.memory(record.name)
    except Exception as error:
        raise Violation(f"running, but does not answer: {record}: {error!r}") from error
    demand(not is_paused, "left paused", record)
    demand(health.workload.state == "running", "left frozen", record, health)
    demand(record.layer == rig.layer, "two opinions of what it writes to", record, rig.layer)
    # A VMM that could not say whether it had switched counts as if it had: the layer above is empty then.
    tops = [record.layer, *(_beneath(daemon, record.layer) if was_switch_untold(daemon) else ())]
    demand(top in tops, "writes to another layer than its record says", record, top)
    ip = daemon.fleet.get(record.id).ip
    demand((memory["hostname"], memory["ip"]) == (record.name, ip), "is somebody else", record, memory)


def was_switch_untold(daemon: Daemon) -> bool:
    """Tell whether a VMM was ever made to fail when asked what it writes to."""
    return isinstance(daemon.faults, ChaosFaults) and daemon.faults.struck("vmm.top_layer") > 0


def _beneath(daemon: Daemon, layer: LayerId | None) -> list[LayerId]:
    backing = daemon.site.layers._backing.get(layer) if layer is not None else None
    return [daemon.site.layers.id_of(backing)] if backing is not None else []


def descriptors() -> Counter[str]:
    """Return how many descriptors of each kind this process has."""
    kinds: Counter[str] = Counter()
    for entry in os.scandir("/proc/self/fd"):
        try:
            target = os.readlink(entry.path)
        except FileNotFoundError:
            continue
        kinds[target.partition(":")[0] if not target.startswith("/") else target.partition(" ")[0]] += 1
    return kinds


def check_descriptors(daemon: Daemon) -> None:
    """No capture, TAP or socket is open that nobody uses."""
    kinds = descriptors()
    memory = {kind: count for kind, count in kinds.items() if kind.startswith("/memfd:")}
    pools = daemon.fleet._host.pools  # type: ignore[attr-defined]
    generations = [pool._generation for pool in pools._pools.values() if pool._generation is not None]
    to_come = sum(generation.capture is not None for generation in generations)
    demand(sum(memory.values()) == 2 * to_come, "captures are still open", memory, to_come)
    demand(not kinds["/dev/net/tun"], "TAPs are still open", kinds)
    layers = {kind: count for kind, count in kinds.items() if str(daemon.site.folder.instances) in kind}
    demand(not layers, "files of instances are open", layers)
    rigs = len(daemon.site.rigs) + len(pools.berths())
    demand(kinds["anon_inode"] <= rigs + PROCESS_DESCRIPTORS, "processes are held for nobody", kinds, rigs)
    sockets = 2 * rigs + PROCESS_SOCKETS
    demand(kinds["socket"] <= sockets, "sockets are open for nobody", kinds, rigs)


PROCESS_DESCRIPTORS = 4
"""anon_inode descriptors of a daemon without instances: its event loop, and nft's pidfd."""
PROCESS_SOCKETS = 6
"""Sockets of a daemon without instances: the loop's own pair, the nursery's, netlink's."""
