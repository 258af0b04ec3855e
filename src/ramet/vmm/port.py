"""The port behind which every VMM stands.

A `Driver` starts VMM processes; a `Vm` is one of them. Everything a VMM may or may not be able to do
beyond that is a narrower class (`LiveCapture` here), so a driver that cannot has no method to call.
Nothing above this package knows which VMM it talks to: what a driver must remember across a restart of
the daemon is the opaque `driver` member of a `Runtime`.

All calls raise `Broken` (or a subclass of it) where the VMM or the kernel failed.
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Final, Literal

import anyio

from ramet.core.errors import Broken, Conflict, Invalid, Unsupported
from ramet.core.ids import InstanceId
from ramet.core.spec import Runtime
from ramet.linux.filled_once import FilledOnce
from ramet.linux.pagemap import PageRuns
from ramet.linux.process import HeldProcess

AGENT_PORT_NAME: Final = "ramet.agent"
OUTPUT_PORT_NAME: Final = "ramet.output"
NO_FD: Final = -1
MEMORY_FILE_NAME: Final = "ramet-memory"
"""Of the file that holds a capture's memory, in memory or on a disk: VMMs' mappings are known by it."""


class VmmFailed(Broken):
    """The VMM ended, refused a command or did not answer; `log_tail` has its last words."""

    code = "vmm_failed"


class VmmUnsupported(Unsupported):
    """The hypervisor cannot build such a machine; another may."""

    code = "vmm_unsupported"


class LiveForkUnsupported(Unsupported):
    """This VMM cannot be forked while it runs, nor put to sleep."""

    code = "live_fork_unsupported"
    remedy_default = "stop it first, or use another hypervisor"


class SizeOutOfRange(Invalid):
    """The VM has no room for so many processors or so much memory, or cannot do with so few."""

    code = "size_out_of_range"
    remedy_default = "ask for a size in the range that the error tells"


class BalloonUnsupported(Unsupported):
    """No memory can be taken back from this VM: its VMM would give back what it shares with others."""

    code = "balloon_unsupported"
    remedy_default = "take it from the source, or from an instance that was booted"


class VmmSilent(VmmFailed):
    """The VMM runs and does not answer: stopped, hung or overworked. It may yet."""

    code = "vmm_silent"


class GuestStarved(VmmFailed):
    """The guest stands still in a write: the host's disk is full. It goes on when there is room."""

    code = "guest_starved"


class SnapshotIncompatible(Conflict):
    """The capture was taken by another hypervisor, VMM version, device model or accelerator."""

    code = "snapshot_incompatible"


@dataclass(frozen=True, slots=True)
class DiskImage:
    """One disk: a chain of layers, topmost first; the last has no backing. The topmost is written to."""

    layers: tuple[tuple[Path, Literal["raw", "qcow2"]], ...]
    is_read_only: bool = False
    """Nothing is written to it: several VMs may have it at a time."""


@dataclass(frozen=True, slots=True)
class NicLimits:
    """What a network card lets through at most: bytes per second of whole frames, None is without limit.

    Download is what comes to the guest, upload what it sends.
    """

    download_bytes_per_s: int | None = None
    upload_bytes_per_s: int | None = None


@dataclass(frozen=True, slots=True)
class Nic:
    """The guest's network card. `tap_fd` is an open descriptor of its TAP, handed to the VMM.

    `tap_name`: that of a TAP which nobody holds open, for a VMM that opens it itself; `tap_fd` is NO_FD then.
    `limits`: what the VMM is to hold it to; None: nothing, since the TAP is shaped.
    A VMM that has no such limits ignores it.
    """

    mac: str
    tap_fd: int
    tap_name: str | None = None
    limits: NicLimits | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """What a VMM is told to build. Two machines of equal shape can exchange captures.

    `folder` belongs to this VM alone: sockets and logs (`console.log`, `output.log`, `vmm.log`) lie there.
    `vcpu_count_max`, `plug_bytes`: room for processors (in all; None: for no more) and memory (beside what it
    boots with) to be plugged in while it runs, of a VMM whose Vms are `Resizable`; others refuse it.
    `disk_io_bytes_per_s`: what its disks let through at most, read and written together, from the start and
    after a load, of a driver that `limits_disks`; None: all they can.
    """

    instance: InstanceId
    folder: Path
    vcpu_count: int
    memory_bytes: int
    kernel: Path
    initramfs: Path
    root: Path
    overlay: DiskImage
    config: Path
    nic: Nic | None
    volumes: tuple[DiskImage, ...] = ()
    vcpu_count_max: int | None = None
    plug_bytes: int = 0
    disk_io_bytes_per_s: int | None = None

    @property
    def memory_bytes_max(self) -> int:
        """How much memory a capture of it may have."""
        return self.memory_bytes + self.plug_bytes

    def demand_fixed_size(self, hypervisor: str) -> None:
        """Check that there is no room for more, for a hypervisor that can plug nothing in.

        Raises:
            VmmUnsupported: there is.
        """
        if self.plug_bytes or self.vcpu_count_max not in (None, self.vcpu_count):
            raise VmmUnsupported(
                f"an instance on {hypervisor} keeps the processors and the memory that it boots with",
                remedy="ask for no room for more, or use hypervisor cloud-hypervisor",
            )


class ExitReason(Enum):
    """Why a VMM is no longer there."""

    GUEST_SHUTDOWN = "guest_shutdown"  # The guest powered off.
    GUEST_RESET = "guest_reset"  # The guest asked for a reset, or its kernel panicked.
    KILLED = "killed"  # We ended the VMM.
    UNKNOWN = "unknown"  # It ended without a word (crash, OOM, somebody's kill).


@dataclass(frozen=True, slots=True)
class CaptureFormat:
    """By whom a capture was taken, and so who can load it: a VMM that is the same in all of this.

    `device_model` is the number of the list of devices; `version` that of the VMM. `processor` is the host's
    where the guest was shown it and may have come to rely on it, and empty where it is emulated, or unknown.
    """

    hypervisor: str
    version: str
    device_model: int
    accelerator: str
    processor: str = ""

    def __str__(self) -> str:
        parts = [f"devices {self.device_model}", self.accelerator, self.processor]
        return f"{self.hypervisor} {self.version} ({', '.join(filter(None, parts))})"

    def is_loaded_by(self, loader: "CaptureFormat") -> bool:
        """Tell whether `loader` is the same in all of this that is known."""
        if not (self.processor and loader.processor):
            return replace(self, processor="") == replace(loader, processor="")
        return self == loader


@dataclass(slots=True)
class Capture:
    """The memory and the device state of a guest at one instant: filled once, then sealed for ever.

    `format` is told by `save_devices`. A `base` is the whole memory of an earlier instant of the same guest.
    Where there is one, `memory` may be filled with nothing but the pages that differ from it: `copy_rest`
    tells them then, as `changes`. None: `memory` is the whole.
    `is_packed`: the memory is packed (docs/pager.md), for a VMM that is served page by page; it has no base.
    """

    memory: FilledOnce
    devices: FilledOnce
    format: CaptureFormat | None = None
    base: FilledOnce | None = None
    changes: PageRuns | None = None
    is_packed: bool = False

    @property
    def mapped(self) -> FilledOnce:
        """What a VMM maps to start from it; `changes` are laid over it before it is there."""
        assert not self.is_packed, "only the pager can read it"
        if self.changes is None:
            return self.memory
        assert self.base is not None, "changes are of something"
        return self.base

    def demand_format(self, loader: CaptureFormat) -> None:
        """Check that `loader` can load it.

        Raises:
            SnapshotIncompatible: it was taken by another.
        """
        if self.format is None or not self.format.is_loaded_by(loader):
            raise SnapshotIncompatible(
                f"a capture taken by {self.format} cannot be loaded by {loader}",
                remedy="stop the source and start it again, which puts it on the VMM that is installed now",
                found=str(self.format),
                supported=str(loader),
            )

    def seal(self) -> None:
        self.memory.seal()
        self.devices.seal()

    def close(self) -> None:
        """Close our descriptors; children that map the memory keep it. Idempotent."""
        self.memory.close()
        self.devices.close()
        if self.base is not None:
            self.base.close()


class Vm(ABC):
    """One running (or waiting) VMM process."""

    runtime: Runtime
    agent_socket: Path
    """Unix socket of the guest's agent port. Takes one connection at a time.

    One that ends in `.vsock` is asked for the agent's port first (`ramet.wire.vsock`).
    """
    output_socket: Path | None = None
    """Where the workload's output is to be fetched, as of the agent's; None: the VMM writes `output.log`."""

    @abstractmethod
    async def wait_exited(self) -> ExitReason:
        """Return when the process is gone, its descriptors closed and it has been reaped."""

    @abstractmethod
    async def kill(self) -> None:
        """End the process, whatever it does; return when it is gone. Idempotent."""

    @abstractmethod
    async def is_paused(self) -> bool:
        """Tell whether the guest's processors stand still."""

    @abstractmethod
    async def resume(self) -> None:
        """Let the guest run. Harmless if it does; waits for the end of a capture's pause."""

    @property
    def is_starved(self) -> bool:
        """Whether the guest stands still in a write, for want of room on the host's disk.

        Never, of a VMM that lets its guest see the failure.
        """
        return False

    def when_starved(self, call: Callable[[], None]) -> AbstractContextManager[None]:
        """Inside, have `call` called whenever the guest is stopped like that, or was resumed in vain."""
        return nullcontext()

    @contextmanager
    def unless_starved(self) -> Iterator[None]:
        """Give the inside up when the guest starves, or does so still: what it was asked to do, it cannot.

        Raises:
            GuestStarved: that was so.
        """
        with anyio.CancelScope() as scope, self.when_starved(scope.cancel):
            yield
        if scope.cancelled_caught:
            raise GuestStarved(
                "the guest cannot write: the host's disk is full",
                remedy="make room on the file system of the data folder",
            )

    @abstractmethod
    async def detach(self) -> None:
        """Let go of the process without ending it: the daemon leaves, the guest does not."""


class LiveCapture(Vm):
    """A Vm that can be captured while it runs, to be forked.

    Order of calls: `prepare_disk` and `copy_ahead`, then inside `paused()`: `switch_disk`, `save_devices`,
    `copy_rest`. If it does not come to `switch_disk`, `forget_disk`.
    """

    @abstractmethod
    async def prepare_disk(self, new_top: Path) -> None:
        """Open `new_top`, an empty qcow2 on the present top layer, without using it yet."""

    @abstractmethod
    async def forget_disk(self, new_top: Path) -> None:
        """Close what `prepare_disk` opened."""

    @abstractmethod
    async def copy_ahead(self, target: Capture) -> int:
        """Copy resident memory while the guest runs, to make the pause short. Returns bytes copied.

        Cancelled, it ends within some 64 MiB; so does `copy_rest`.

        Raises:
            OSError: this process gets no memory for it (ENOMEM).
        """

    @abstractmethod
    def paused(self) -> AbstractAsyncContextManager[None]:
        """Stand still inside, go on outside, whatever happens in between, cancellation included."""

    @abstractmethod
    def stay_paused(self) -> None:
        """Inside `paused`: have it not go on any more, since it is about to be ended."""

    @abstractmethod
    async def switch_disk(self, new_top: Path) -> None:
        """Write to the prepared `new_top` from now on; the present top layer is frozen under it."""

    @abstractmethod
    async def save_devices(self, target: Capture) -> None:
        """Write the device state into `target`, and its format."""

    @abstractmethod
    async def copy_rest(self, target: Capture) -> int:
        """Make `target` equal to the guest's memory. Returns the bytes copied; only while paused."""

    @abstractmethod
    async def top_layer(self) -> Path:
        """Return the file the overlay disk writes to now."""

    @abstractmethod
    async def collapse_disk(self, base: Path) -> None:
        """Draw the layers above `base` into the top one, while the guest runs; `base` is its backing then."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a VM is to be, and can be. Its guest may be on the way to it still."""

    vcpu_count: int
    vcpu_count_max: int
    memory_bytes: int
    memory_bytes_min: int
    memory_bytes_max: int
    memory_step_bytes: int


class Resizable(Vm):
    """A Vm that is given processors and memory, and has them taken away, while it runs."""

    @abstractmethod
    async def sizes(self) -> Sizes:
        """Return how large it was last asked to be, and the range."""

    @abstractmethod
    async def resize(self, vcpu_count: int | None = None, memory_bytes: int | None = None) -> None:
        """Ask the guest to be so large; None: as it is. It may take its time, and fall short in memory.

        Raises:
            SizeOutOfRange: it cannot be; nothing was changed.
            VmmFailed: the VMM refused it, as while the guest still gives up processors.
        """


class Ballooned(Vm):
    """A Vm whose guest is asked to give memory back to the host while it runs."""

    @abstractmethod
    async def balloon_bytes(self) -> int:
        """Return how much it was last asked to give back. It may have less to spare."""

    @abstractmethod
    async def set_balloon(self, balloon_bytes: int) -> None:
        """Ask the guest to give back so much in all, rounded down to whole MiB; 0: to have all of it again.

        Raises:
            SizeOutOfRange: it has not so much.
            BalloonUnsupported: what would be given back belongs to others.
        """

    @abstractmethod
    async def demand_inflatable(self) -> None:
        """Check that it can be asked to give anything back at all.

        Raises:
            BalloonUnsupported: what would be given back belongs to others.
        """


class Restored(Vm):
    """A Vm that was started to receive a capture and waits for it."""

    @abstractmethod
    async def load(self, capture: Capture) -> None:
        """Take the device state of `capture`, sealed by now, and run.

        Raises:
            SnapshotIncompatible: this VMM cannot load it; the process is gone.
            VmmFailed: it did not load; the process is gone.
        """

    async def note_ready(self) -> None:
        """Be told that the guest that was loaded has answered; never fails. Of use to few VMMs."""
        return


class Driver(ABC):
    """Starts VMMs of one kind and finds them again."""

    name: str
    version: str
    accelerator: str
    disk_form: Literal["raw", "qcow2"] = "qcow2"
    """Of the layers that its VMMs write to."""
    opens_taps: bool = False
    """Whether its VMMs open their TAP themselves, by name: `Nic.tap_name`."""
    plugs_memory: bool = False
    """Whether its Vms are `Resizable`: `Machine.plug_bytes`."""
    has_balloon: bool = False
    """Whether its Vms are `Ballooned`."""
    speaks_vsock: bool = False
    """Whether host and guest speak by vsock; otherwise by virtio-serial."""
    limits_disks: bool = False
    """Whether it keeps to `Machine.disk_io_bytes_per_s`."""

    @property
    def takes_packed(self) -> bool:
        """Whether it can start a VMM from a capture whose memory is packed, as things are now."""
        return False

    @abstractmethod
    async def boot(self, machine: Machine) -> Vm:
        """Start a VMM that boots `machine`. Its process outlives the daemon.

        Raises:
            VmmUnsupported: the machine has more than this hypervisor has a place for.
            VmmFailed: it ended at once, or did not answer.
        """

    @abstractmethod
    async def find(self) -> dict[InstanceId, Runtime]:
        """Return every VMM process of this driver and data folder on this host, by instance."""

    @abstractmethod
    async def adopt(self, instance: InstanceId, folder: Path, runtime: Runtime) -> Vm:
        """Take hold of a VMM found on this host; a layer it was left prepared with is closed.

        Raises:
            VmmSilent: the process runs and does not answer in time.
            VmmFailed: it is gone.
        """

    async def wait_gone(self, runtime: Runtime) -> None:
        """Return when the process of `runtime`, which need not answer, is gone."""
        try:
            process = HeldProcess(runtime.pid, start_ticks=runtime.start_ticks)
        except ProcessLookupError:
            return
        try:
            await process.wait_exited()
        finally:
            process.close()

    @abstractmethod
    async def end(self, runtime: Runtime) -> None:
        """End a VMM that cannot be adopted, by process alone; return when it is gone. Idempotent."""


class LiveFork(Driver):
    """A Driver whose Vms are `LiveCapture` and that can start children of a capture."""

    @abstractmethod
    async def start_waiting(self, machine: Machine, capture: Capture) -> Restored:
        """Start a VMM that waits; its memory is a private mapping of that of `capture`, filled or not yet."""


async def connect_unix(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a unix socket whose listener exists already.

    Raises:
        VmmFailed: nobody listens there.
    """
    try:
        return await asyncio.open_unix_connection(str(path))
    except OSError as error:
        raise VmmFailed(f"{path.name}: nobody listens: {error.strerror}") from error
