"""A host with real files, database, layers and network, and fake VMMs; and daemons on it, one after another.

What `leftovers` returns is everything the host knows of instances, from the host itself and not from what the
daemon believes.
"""

import json
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from ramet.boot.kit import BootKit
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceSpec
from ramet.disks.layers import LayerStore
from ramet.effects.performer import SitePerformer
from ramet.effects.reconcile import reconcile
from ramet.effects.site import Site
from ramet.effects.snapshots import NamedSnapshots
from ramet.effects.stages import Stages
from ramet.effects.volumes import SiteVolumes
from ramet.guest.channel import open_channel
from ramet.images import Catalog, ImageLimits
from ramet.instance.fleet import Fleet
from ramet.instance.fleet_types import ExecCommand
from ramet.linux.process import list_command_lines
from ramet.net.bridge import BridgeConfig
from ramet.net.network import Network
from ramet.snapshots.catalog import SnapshotCatalog
from ramet.snapshots.store import CaptureStore
from ramet.store.database import Database
from ramet.store.paths import DataFolder
from ramet.vmm.fake.driver import COMMAND_TIMEOUT_S, MARK, FakeDriver
from ramet.vmm.fake.faults import Faults
from ramet.vmm.fake.nursery import Nursery
from ramet.vmm.port import Driver
from ramet.volumes.catalog import VolumeCatalog

MEMORY_BYTES = 1 << 20
OVERLAY_BYTES = 4 << 20


def new_folder() -> Path:
    """Return a folder with a short path, for the sockets in it."""
    return Path(tempfile.mkdtemp(prefix="ramet-world-"))


@dataclass
class Daemon:
    """A running daemon, without its API."""

    fleet: Fleet
    snapshots: NamedSnapshots
    volumes: SiteVolumes
    site: Site
    faults: Faults
    spec: InstanceSpec

    async def run(self, ref: str, *argv: str) -> str:
        """Run a command in a guest, which must succeed; returns what it wrote."""
        session = await self.fleet.open_exec(ref, ExecCommand(argv, has_stdin=False))
        written = b"".join([chunk async for _, chunk in session.output()])
        end = await session.wait()
        assert end.code == 0, (argv, end)
        return written.decode()

    async def memory(self, ref: str) -> dict[str, Any]:
        """Return all that a guest knows."""
        found: dict[str, Any] = json.loads(await self.run(ref, "memory"))
        return found

    async def is_well(self, ref: str) -> bool:
        """Tell whether a guest runs and its workload is not frozen."""
        rig = self.site.rigs[self.fleet.get(ref).record.id]
        health = await (await rig.channel()).health()
        return health.workload.state == "running" and not await rig.vm.is_paused()


class World:
    """The host.

    `nursery` makes its VMMs, if any; they may take `vmm_timeout_s` to answer; `prepare` is given the parts of
    each daemon that starts; with `pulls_images` its daemons pull.
    """

    def __init__(self, folder: Path, images: Path) -> None:
        self.folder, self.images = folder, images
        self.nursery: Nursery | None = None
        self.vmm_timeout_s = COMMAND_TIMEOUT_S
        self.memory_bytes = MEMORY_BYTES
        self.pulls_images = False
        self.prepare: Callable[[Site], None] = lambda site: None

    def open_driver(self, data: DataFolder, faults: Faults) -> Driver:
        """Return the driver of a daemon's one hypervisor."""
        return FakeDriver(data.instances, faults, self.vmm_timeout_s, self.nursery)

    @asynccontextmanager
    async def daemon(self, faults: Faults | None = None) -> AsyncIterator[Daemon]:
        """Run a daemon inside; it leaves without ending its guests, as on SIGTERM."""
        faults = faults or Faults()
        async with AsyncExitStack() as stack:
            data = DataFolder(self.folder / "data")
            stack.callback(data.close)
            database = Database(data.database)
            stack.callback(database.close)
            catalog = Catalog(self.images, ImageLimits())
            await catalog.open()
            network = Network(BridgeConfig())
            stack.push_async_callback(network.close)
            driver = self.open_driver(data, faults)
            kit = BootKit(Path("/dev/null"), Path("/dev/null"), "none", "none")
            layers = LayerStore(data.layers)
            captures = CaptureStore(data.captures)
            volumes = VolumeCatalog.open(data.volumes)
            drivers, stages = {driver.name: driver}, Stages("kvm")
            site = Site(data, database, network, layers, captures, catalog, drivers, kit, stages, volumes)
            stack.push_async_callback(_let_go, site)
            self.prepare(site)
            snapshots = SnapshotCatalog(data.snapshots, layers, captures)
            snapshots.load()
            found = await reconcile(site)
            async with anyio.create_task_group() as group:
                performer = SitePerformer(site, group)
                fleet = Fleet(performer)
                performer.connect(fleet.tell, lambda instance: fleet.get(instance).record)
                await group.start(fleet.run, found)
                group.start_soon(network.run)
                group.start_soon(captures.run)
                group.start_soon(snapshots.run)
                if self.pulls_images:
                    await group.start(catalog.pulls.run)
                digest = catalog.resolve("demo:1").digest
                spec = InstanceSpec("demo:1", digest, driver.name, 1, self.memory_bytes, OVERLAY_BYTES)
                named = NamedSnapshots(site, snapshots, fleet, performer.pools)
                yield Daemon(fleet, named, SiteVolumes(site), site, faults, spec)
                group.cancel_scope.cancel()

    def leftovers(self) -> dict[str, set[str]]:
        """Return what is on the host, by kind."""
        data = self.folder / "data"
        database = sqlite3.connect(data / "state.db")
        journal = {
            f"{row[0]} {row[1]}" for row in database.execute("SELECT operation, instance FROM journal")
        }
        records = {row[0] for row in database.execute("SELECT id FROM instances")}
        database.close()
        links = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, check=True).stdout)
        rules = subprocess.run(["nft", "-j", "list", "ruleset"], capture_output=True, check=True).stdout
        return {
            "processes": {str(pid) for pid in self.processes()},
            "layers": {
                path.name for path in (data / "layers").iterdir() if not path.name.startswith("ext4-")
            },
            "snapshots": _without_checksums({path.name for path in (data / "snapshots").iterdir()}),
            "volumes": {path.name for path in (data / "volumes").iterdir()},
            "captures": {path.name for path in (data / "captures").iterdir()},
            "folders": {path.name for path in (data / "instances").iterdir()},
            "journal": journal,
            "records": records,
            "taps": {link["ifname"] for link in links if link["ifname"].startswith("rmt0")},
            "ifbs": {link["ifname"] for link in links if link["ifname"].startswith("rmtu")},
            "admissions": _elements(json.loads(rules)),
        }

    def processes(self) -> dict[int, InstanceId]:
        """Return the fake VMMs of this host, by pid."""
        return {pid: InstanceId(Path(told["folder"]).name) for pid, told in self._told().items()}

    def volumes_in_use(self) -> dict[int, list[tuple[str, bool]]]:
        """Return the volumes that each VMM has, by pid: its file, and whether it only reads it."""
        return {pid: [tuple(each) for each in told["volumes"]] for pid, told in self._told().items()}

    def _told(self) -> dict[int, dict[str, Any]]:
        """Return what each fake VMM of this host was told, by pid."""
        return {
            pid: json.loads(arguments[-1])
            for pid, arguments in list_command_lines()
            if MARK in arguments and str(self.folder) in arguments[-1]
        }

    async def ask_guest(self, instance: InstanceId) -> str:
        """Return the state of a guest's workload, asked past any daemon."""
        path = self.folder / "data" / "instances" / instance / "agent.sock"
        async with await open_channel(path, timeout_s=10) as channel:
            return (await channel.health()).workload.state

    async def aclose(self) -> None:
        for pid in self.processes():
            os.kill(pid, 9)
        shutil.rmtree(self.folder)


def performer_of(fleet: Fleet) -> SitePerformer:
    """Return who performs the actions of a fleet."""
    assert isinstance(fleet._host, SitePerformer)
    return fleet._host


async def _let_go(site: Site) -> None:
    with anyio.CancelScope(shield=True):
        for rig in site.rigs.values():
            await rig.close()
            await rig.vm.detach()


def _without_checksums(names: set[str]) -> set[str]:
    """Return the files of snapshots without the checksums of the disk of one that is there."""
    return names - {f"{name.removesuffix('.json')}.disk.json" for name in names}


def _elements(ruleset: dict[str, Any]) -> set[str]:
    found = set()
    for entry in ruleset["nftables"]:
        for kind in ("set", "map"):
            for element in entry.get(kind, {}).get("elem", []):
                found.add(f"{entry[kind]['name']} {json.dumps(element)}")
    return found
