"""Where the parts are put together: the only file that names a driver."""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from typing import Final

import anyio
import structlog
from anyio import to_thread

from ramet.admission.admission import Admission
from ramet.admission.capacity import host_limits, host_memory, network_limit
from ramet.admission.demand import Resource
from ramet.boot.kit import BootKit, prepare_kit
from ramet.boot.locate import GUEST_PROGRAM, PAGER_PROGRAM, WRITEWATCH_LIBRARY, native_program
from ramet.core.errors import Broken
from ramet.core.health import HealthStatus
from ramet.core.spec import InstanceRecord
from ramet.daemon.config import Settings
from ramet.daemon.stranded import end_stranded
from ramet.disks.layers import LayerStore
from ramet.effects.counting import SiteResources
from ramet.effects.guest_memory import SiteGuests
from ramet.effects.performer import SitePerformer
from ramet.effects.probes import Probes
from ramet.effects.reconcile import reconcile
from ramet.effects.site import Site
from ramet.effects.snapshots import NamedSnapshots
from ramet.effects.stages import Stages
from ramet.effects.volumes import SiteVolumes
from ramet.images.catalog import Catalog
from ramet.instance.events import HealthFound
from ramet.instance.fleet import Fleet
from ramet.linux import kvm
from ramet.logs.supervision import keep_logs_bounded
from ramet.net.network import Network
from ramet.net.slots import NoEndpoint
from ramet.pager import PagerService
from ramet.policies.checks import HealthKeeper
from ramet.policies.expiry import ExpiryKeeper
from ramet.policies.idle import IdleKeeper
from ramet.policies.keepers import Keepers
from ramet.policies.reclaiming import ReclaimKeeper
from ramet.policies.restarts import RestartKeeper
from ramet.policies.retention import LayerKeeper, RetentionKeeper
from ramet.policies.schedules import ScheduleKeeper
from ramet.policies.traffic import TrafficKeeper
from ramet.snapshots.catalog import SnapshotCatalog
from ramet.snapshots.schedules import ScheduleStore
from ramet.snapshots.store import CaptureStore
from ramet.store.answers import AnswerStore
from ramet.store.database import Database
from ramet.store.holds import HoldFile
from ramet.store.idleness import IdleFile
from ramet.store.paths import DataFolder
from ramet.store.unused import UnusedFile
from ramet.vmm.cloud_hypervisor.driver import CloudHypervisorDriver
from ramet.vmm.firecracker.driver import FirecrackerDriver
from ramet.vmm.jail import JailConfig, JailMode
from ramet.vmm.port import Driver
from ramet.vmm.qemu.board import BOARDS
from ramet.vmm.qemu.driver import QemuDriver
from ramet.volumes.catalog import VolumeCatalog

DRIVERS: Final[Mapping[str, type[Driver]]] = {
    **{board.name: QemuDriver for board in BOARDS},
    FirecrackerDriver.name: FirecrackerDriver,
    CloudHypervisorDriver.name: CloudHypervisorDriver,
}
"""All hypervisors that there are drivers for; what a host lacks is not opened."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Running:
    """The parts the API is made of; `drivers` by name."""

    fleet: Fleet
    images: Catalog
    snapshots: NamedSnapshots
    volumes: SiteVolumes
    drivers: Mapping[str, Driver]
    default_hypervisor: str
    network: Network
    resources: SiteResources
    keepers: Keepers
    answers: AnswerStore


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Running]:
    """Own the data folder and run its instances inside; outside, the guests run on alone.

    Raises:
        RametError: this host, or what lies in the data folder, cannot be used; nothing was changed.
    """
    async with AsyncExitStack() as stack:
        folder = DataFolder(settings.data_dir)
        stack.callback(folder.close)
        database = Database(folder.database)
        stack.callback(database.close)
        answers = AnswerStore(folder.answers)
        stack.callback(answers.close)
        drivers = dict[str, Driver]()
        pager = _make_pager(settings, folder, drivers)
        drivers |= await to_thread.run_sync(_open_drivers, settings, folder, pager)
        default: str = settings.hypervisor.default or next(iter(drivers))
        capacity = settings.capacity_config()
        admission = Admission(host_limits(capacity, folder.root))
        disk_bytes = admission.ledger.limit_of(Resource.DISK).capacity
        limits = settings.limits.images(disk_bytes)
        images = Catalog(folder.images, limits, registries=settings.registries.config())
        await images.open()
        kit = await to_thread.run_sync(lambda: _prepare_kit(settings, folder))
        network = Network(settings.network.bridge())
        stack.push_async_callback(network.close)
        site = Site(
            folder,
            database,
            network,
            LayerStore(folder.layers),
            CaptureStore(folder.captures),
            images,
            drivers,
            kit,
            Stages(drivers[default].accelerator, settings.forks.width),
            VolumeCatalog.open(folder.volumes),
            admission=admission,
            compression=settings.snapshot.compression_default.how(),
            fork_pool_idle_s=settings.forks.pool_idle_s,
        )
        stack.push_async_callback(_let_go, site)
        catalog = SnapshotCatalog(folder.snapshots, site.layers, site.captures)
        catalog.load()  # Before reconcile sweeps what nobody holds.
        if settings.hypervisor.uses_pager:
            await pager.start()
        found = await reconcile(site)
        admission.ledger.limit(network_limit(capacity, network.statistics().uplink))
        async with anyio.create_task_group() as group:
            performer = SitePerformer(site, group)
            fleet = Fleet(performer)
            performer.connect(fleet.tell, lambda instance: fleet.get(instance).record)
            snapshots = NamedSnapshots(site, catalog, fleet, performer.pools)
            keepers = make_keepers(settings, fleet, performer, snapshots, site)
            await group.start(fleet.run, found)
            group.start_soon(network.run)
            idle = keepers.idle
            group.start_soon(network.flows.run, idle.connections_changed, idle.all_changed)
            group.start_soon(keepers.run, lambda: [view.record for view in fleet.list()])
            group.start_soon(pager.run if settings.hypervisor.uses_pager else pager.retire)
            group.start_soon(keep_logs_bounded, folder.root, settings.logging.bounds())
            group.start_soon(site.captures.run)
            group.start_soon(catalog.run)
            await group.start(images.pulls.run)
            group.start_soon(LayerKeeper(images.pulls, settings.images.oci_cache_gc.config()).run)
            volumes, resources = _make_volumes(settings, site), SiteResources(site)
            yield Running(
                fleet, images, snapshots, volumes, drivers, default, network, resources, keepers, answers
            )
            group.cancel_scope.cancel()


def make_keepers(
    settings: Settings, fleet: Fleet, performer: SitePerformer, snapshots: NamedSnapshots, site: Site
) -> Keepers:
    """Return who keeps the fleet to its rules; the network's flows are to tell who is connected."""
    network = site.network

    def address_of(record: InstanceRecord) -> IPv4Address | None:
        try:
            return network.endpoint(record.id).ip
        except NoEndpoint:  # It has no network, or is just going.
            return None

    traffic = TrafficKeeper(fleet, performer, by_default=settings.auto_standby.wake_on_traffic)
    idle = IdleKeeper(
        fleet,
        network.flows,
        address_of,
        performer.exec_count,
        settings.auto_standby.config(),
        traffic_of=traffic.status,
        times=IdleFile(site.folder.idle),
    )

    async def tell_health(record: InstanceRecord, status: HealthStatus) -> None:
        await fleet.tell(record.id, HealthFound(status, record.started_at, time.time()))

    probes = Probes(network, fleet.open_exec, site.rigs)
    health = HealthKeeper(probes, tell_health, settings.health.max_concurrent)
    schedules = ScheduleKeeper(fleet, snapshots, ScheduleStore(site.folder.schedules))
    guests = SiteGuests(site, lambda: (view.record for view in fleet.list()))
    memory = settings.hypervisor.memory.config()
    reclaims = ReclaimKeeper(guests, HoldFile(site.folder.reclaim), host_memory, memory)

    def used_images() -> set[str]:
        return {*fleet.register.images(), *(found.spec.image_digest for found in snapshots.list())}

    unused = UnusedFile(site.folder.unused_images)
    retention = RetentionKeeper(site.images, unused, used_images, settings.images.auto_delete.config())
    site.images.watch(retention.see_used)
    expiry, restarts = ExpiryKeeper(fleet), RestartKeeper(fleet)
    keepers = Keepers(idle, traffic, expiry, schedules, reclaims, health, restarts, retention)
    performer.ask_health(health.health)
    performer.watch(keepers.see, keepers.see_gone)
    performer.watch_execs(idle.execs_changed)
    return keepers


def _make_pager(settings: Settings, folder: DataFolder, drivers: Mapping[str, Driver]) -> PagerService:
    """Return the daemon's pager, which need not be used; `drivers` are those there will be."""
    wanted = settings.hypervisor

    async def end_unserved(served: frozenset[int]) -> None:
        await end_stranded([each for each in drivers.values() if isinstance(each, FirecrackerDriver)], served)

    return PagerService(
        folder.pagers,
        native_program(PAGER_PROGRAM),
        end_unserved,
        wanted.firecracker_uffd_cache_max_bytes,
        wanted.firecracker_uffd_graduation.config(),
    )


def _make_volumes(settings: Settings, site: Site) -> SiteVolumes:
    return SiteVolumes(site, storage_bytes_max=settings.limits.max_total_volume_storage)


def _open_drivers(
    settings: Settings, folder: DataFolder, pager: PagerService | None = None
) -> Mapping[str, Driver]:
    """Open every driver this host has; the first is that of instances that name none, if no setting does.

    Raises:
        Broken: there is none, or not that of the default hypervisor.
        ProgramNotBuilt: a part of this installation is missing.
    """
    library = native_program(WRITEWATCH_LIBRARY)
    openers: dict[str, Callable[[], Driver]] = {
        board.name: partial(QemuDriver.open, folder.instances, board=board, watch_library=library)
        for board in BOARDS
    }
    openers[FirecrackerDriver.name] = lambda: _open_firecracker(settings, folder, pager)
    openers[CloudHypervisorDriver.name] = lambda: _open_cloud_hypervisor(settings, folder)
    drivers: dict[str, Driver] = {}
    refusals: list[Broken] = []
    for name, opener in openers.items():
        try:
            drivers[name] = opener()
        except Broken as error:
            if name == settings.hypervisor.default:
                raise
            log.info("hypervisor_unavailable", hypervisor=name, error=str(error))
            refusals.append(error)
    if not drivers:
        raise refusals[0]
    return drivers


def _open_firecracker(
    settings: Settings, folder: DataFolder, pager: PagerService | None
) -> FirecrackerDriver:
    """Open the driver of Firecracker.

    Raises:
        Broken: it is not installed, or this host has no KVM for it.
    """
    wanted = settings.hypervisor
    jail = JailConfig(JailMode(wanted.firecracker_jail))
    driver = FirecrackerDriver.open(
        folder.instances,
        pager=pager if wanted.uses_pager else None,
        program=wanted.firecracker_binary_path,
        jail=jail,
        restore_count_max=wanted.firecracker_max_concurrent_restores,
    )
    _demand_kvm(driver)
    return driver


def _open_cloud_hypervisor(settings: Settings, folder: DataFolder) -> CloudHypervisorDriver:
    """Open the driver of Cloud Hypervisor.

    Raises:
        Broken: it is not installed, or this host has no KVM for it.
    """
    jail = JailConfig(JailMode(settings.hypervisor.cloud_hypervisor_jail))
    driver = CloudHypervisorDriver.open(folder.instances, jail=jail)
    _demand_kvm(driver)
    return driver


def _demand_kvm(driver: Driver) -> None:
    """Check that this host has what a VMM needs that emulates no processor.

    Raises:
        Broken: it has not.
    """
    if not kvm.runs_stock_kernels():
        raise Broken(
            f"{driver.name} needs {kvm.DEVICE}, and one that runs a stock kernel", remedy="see `ramet doctor`"
        )


def _prepare_kit(settings: Settings, folder: DataFolder) -> BootKit:
    return prepare_kit(
        settings.kits_dir or folder.kits,
        guest_program=native_program(GUEST_PROGRAM),
        kernel_package=settings.kernel_package,
    )


async def _let_go(site: Site) -> None:
    """Let go of all guests without ending them."""
    with anyio.CancelScope(shield=True):
        for rig in site.rigs.values():
            await rig.close()
            await rig.vm.detach()
