"""What every effect stands on: the open parts of this host, and what each instance holds of them."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio

from ramet.admission.admission import Admission
from ramet.boot.kit import BootKit
from ramet.core.compression import Compression
from ramet.core.ids import InstanceId, LayerId
from ramet.core.spec import FORK_POOL_IDLE_S, InstanceRecord, InstanceSpec
from ramet.disks.layers import Form, LayerStore
from ramet.effects.stages import Stages
from ramet.guest.channel import Channel, open_channel
from ramet.images.catalog import Catalog
from ramet.instance.fleet_types import HypervisorUnavailable
from ramet.net.network import Network
from ramet.net.rates import RateLimits
from ramet.snapshots.store import CaptureStore
from ramet.store.database import Database
from ramet.store.paths import DataFolder
from ramet.vmm.port import Driver, Vm
from ramet.volumes.catalog import VolumeCatalog

CHANNEL_TIMEOUT_S: Final = 60.0


class Standstill:
    """For how long a workload has been frozen: from when we ask for it until it says that it is thawed."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._before_s = 0.0

    def begin(self) -> None:
        """Note that it is being frozen. Harmless if it was."""
        if self._since is None:
            self._since = time.monotonic()

    def end(self) -> None:
        """Note that it was thawed. Harmless if it was not frozen."""
        self._before_s, self._since = self.total_s(), None

    def total_s(self) -> float:
        """Return for how long, up to now."""
        return self._before_s + (0.0 if self._since is None else time.monotonic() - self._since)


class Rig:
    """What a running instance holds: its VMM, and a channel to its guest that is opened again when lost.

    `layer` is the disk layer it writes to. Whoever captures it holds `capturing`; `still` is for how long its
    workload was frozen for that.
    """

    def __init__(self, instance: InstanceId, vm: Vm, layer: LayerId) -> None:
        self.instance, self.vm, self.layer = instance, vm, layer
        self.capturing = anyio.Lock()
        self.still = Standstill()
        self._channel: Channel | None = None
        self._opening = anyio.Lock()

    async def channel(self, timeout_s: float = CHANNEL_TIMEOUT_S) -> Channel:
        """Return the channel to the guest, opened if need be.

        Raises:
            GuestUnreachable: no answer in time.
        """
        async with self._opening:
            if self._channel is None or self._channel.is_lost:
                self._channel = await open_channel(self.vm.agent_socket, timeout_s=timeout_s)
            return self._channel

    def use(self, channel: Channel) -> None:
        """Take over a channel that was opened elsewhere."""
        self._channel = channel

    async def close(self) -> None:
        """Close the channel; the VMM is left alone."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.aclose()


def limits_of(spec: InstanceSpec) -> RateLimits:
    """Return what an instance may send and receive."""
    return RateLimits(spec.download_bytes_per_s, spec.upload_bytes_per_s)


@dataclass(slots=True)
class Site:
    """The open parts of this host: `drivers` by name, `rigs` the instances whose VMM we hold.

    `unended` are those whose VMM we let go of because it could not be ended: it may still be there.
    `admission` refuses nothing unless it was given limits. `compression` is how stored memory is compressed
    if nobody says otherwise, None: not at all. `fork_pool_idle_s`: how long a pool waits for the next fork.
    """

    folder: DataFolder
    database: Database
    network: Network
    layers: LayerStore
    captures: CaptureStore
    images: Catalog
    drivers: Mapping[str, Driver]
    kit: BootKit
    stages: Stages
    volumes: VolumeCatalog
    rigs: dict[InstanceId, Rig] = field(default_factory=dict)
    unended: set[InstanceId] = field(default_factory=set)
    admission: Admission = field(default_factory=Admission)
    compression: Compression | None = None
    fork_pool_idle_s: float = FORK_POOL_IDLE_S

    def instance_folder(self, instance: InstanceId) -> Path:
        return self.folder.instance(instance)

    def driver_of(self, record: InstanceRecord) -> Driver:
        """Return the driver of an instance's hypervisor.

        Raises:
            HypervisorUnavailable: this host has it no more.
        """
        name = record.spec.hypervisor
        try:
            return self.drivers[name]
        except KeyError as error:
            raise HypervisorUnavailable(
                f"instance {record.name} needs the hypervisor {name}, which this host does not have",
                remedy="install it and restart the server, or delete the instance",
                hypervisor=name,
            ) from error

    def disk_form(self, spec: InstanceSpec) -> Form | None:
        """Return the form of the layers of such an instance; None: this host lacks its hypervisor."""
        driver = self.drivers.get(spec.hypervisor)
        return None if driver is None else driver.disk_form

    def opens_taps(self, spec: InstanceSpec) -> bool:
        """Tell whether the VMM of such an instance opens its TAP itself; no, if this host lacks it."""
        driver = self.drivers.get(spec.hypervisor)
        return driver is not None and driver.opens_taps

    def image_rootfs(self, record: InstanceRecord) -> Path:
        """Return the root image of an instance.

        Raises:
            ImageNotFound: it was removed.
        """
        return self.images.rootfs_of(record.spec.image_digest)
