"""Capturing a guest while it runs.

The order decides how short the pause is: memory is copied once while the guest runs, the file systems are
written out, the workload is frozen, and only then the processors stand still while the disk switches to a
new layer, the devices are saved, and the memory is copied again over warm pages. The source then goes on
whatever happened; its workload is thawed last.
"""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import anyio
import structlog

from ramet.core.errors import Broken
from ramet.core.ids import LayerId
from ramet.disks.layers import CHAIN_LENGTH_MAX, LayerStore
from ramet.linux.memfd import SealableFile
from ramet.telemetry.timings import phase
from ramet.vmm.port import MEMORY_FILE_NAME, Capture, LiveCapture, VmmFailed

log = structlog.get_logger(__name__)


class CaptureRefused(Broken):
    """The host has no memory, or no descriptor, for a capture."""

    code = "capture_refused"


class Workload(Protocol):
    """What a capture needs of the guest inside."""

    async def sync(self) -> None: ...
    async def freeze(self) -> None: ...

    async def thaw(self) -> None:
        """Let it run; not given up because one connection was lost."""
        ...


@dataclass(frozen=True, slots=True)
class Source:
    """A running VM that is to be captured. Sizes in bytes."""

    name: str
    vm: LiveCapture
    workload: Workload
    layer: LayerId
    memory_bytes: int
    disk_bytes: int


@dataclass(frozen=True, slots=True)
class Taken:
    """One instant of a guest: its sealed memory and the disk layer frozen with it. Open until `close`.

    `pause_s` is how long its processors stood still; the bytes are what was copied before and in the pause.
    `on_close` is called by `close`.
    """

    capture: Capture
    frozen: LayerId
    new_top: LayerId
    pause_s: float
    total_s: float
    ahead_bytes: int
    paused_bytes: int
    layers: LayerStore
    on_close: Callable[[], None] = lambda: None

    def close(self) -> None:
        """Give it up; children that map the memory, and layers on the frozen one, keep them."""
        self.capture.close()
        self.layers.release(self.frozen)
        self.on_close()


OpenCapture = Callable[[int], Capture]
"""Opens an empty capture for a guest with that many bytes of memory. Raises OSError."""


async def take_capture(
    source: Source,
    layers: LayerStore,
    new_top: LayerId,
    *,
    open_capture: OpenCapture,
    before_pause: Callable[[], None],
    record_switch: Callable[[LayerId], Awaitable[None]],
) -> Taken:
    """Capture `source`, which goes on writing to `new_top`, a layer made over the frozen one.

    Args:
        open_capture: where the memory is to be kept; closed by us unless it is in what we return.
        before_pause: called when what the guest does from here on may no longer be in the capture.
        record_switch: makes the source's new top layer durable; called while its workload is still frozen.

    Raises:
        VmmFailed, LayerBroken, CaptureRefused: it did not work; the source runs on, as before.
    """
    began = time.perf_counter()
    await shorten_chain(source.vm, source.layer, layers)
    layers.create_on(source.layer, source.disk_bytes, new_top)
    try:
        capture = open_capture(source.memory_bytes)
    except OSError as error:
        layers.release(new_top)
        raise _refused(source, error) from error
    switch = _Switch(source, layers, new_top, record_switch)
    try:
        async with switch:
            await source.vm.prepare_disk(layers.path(new_top))
            with phase("sync"), source.vm.unless_starved():
                await source.workload.sync()
            with phase("copy_ahead"):
                ahead_bytes = await source.vm.copy_ahead(capture)
            before_pause()
            async with _frozen(source.vm, source.workload, switch):
                paused_at = time.perf_counter()
                with phase("pause"):
                    async with source.vm.paused():
                        switch.is_tried = True
                        with phase("switch_disk"):
                            await source.vm.switch_disk(layers.path(new_top))
                        with phase("save_devices"):
                            await source.vm.save_devices(capture)
                        with phase("copy_rest"):
                            paused_bytes = await source.vm.copy_rest(capture)
                pause_s = time.perf_counter() - paused_at
        capture.seal()
    except BaseException as error:
        capture.close()
        if switch.is_done:
            layers.release(source.layer)  # Nobody forks from it; it stays as long as it is below the new top.
        if isinstance(error, OSError):
            raise _refused(source, error) from error
        raise
    total_s = time.perf_counter() - began
    return Taken(capture, source.layer, new_top, pause_s, total_s, ahead_bytes, paused_bytes, layers)


def open_memory_capture(memory_bytes: int) -> Capture:
    """Open an empty capture in memory: see `OpenCapture`."""
    memory = SealableFile(MEMORY_FILE_NAME, memory_bytes)
    try:
        return Capture(memory, SealableFile("ramet-devices"))
    except OSError:
        memory.close()
        raise


def _refused(source: Source, error: OSError) -> CaptureRefused:
    return CaptureRefused(
        f"the memory of instance {source.name} cannot be kept: {error.strerror}",
        remedy="see `ramet doctor`; stop an instance or end what else uses memory",
    )


class _Switch:
    """Whether the source writes to its new layer already, settled before anybody goes on.

    If it was tried and the VMM cannot say, it counts as done: an empty layer over the former top reads as
    that one does, whatever is still written there, while what a forgotten new top holds would be lost.
    """

    def __init__(
        self,
        source: Source,
        layers: LayerStore,
        new_top: LayerId,
        record_switch: Callable[[LayerId], Awaitable[None]],
    ) -> None:
        self._source, self._layers, self._new_top = source, layers, new_top
        self._record_switch = record_switch
        self.is_tried = False
        self.is_done: bool | None = None  # None: not settled.

    async def __aenter__(self) -> None:
        return None

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            await self.settle(has_failed=exc is not None)

    async def settle(self, *, has_failed: bool) -> None:
        """Make the switch durable, or undo its preparation. Idempotent, never raises."""
        if self.is_done is not None:
            return
        path = self._layers.path(self._new_top)
        self.is_done = self.is_tried
        if has_failed:
            try:
                self.is_done = self.is_tried and await self._source.vm.top_layer() == path
                if not self.is_done:
                    await self._source.vm.forget_disk(path)
            except VmmFailed as failure:
                log.info("switch_unsettled", instance=self._source.name, error=str(failure))
        if self.is_done:
            await self._record_switch(self._new_top)
        else:
            self._layers.release(self._new_top)


@asynccontextmanager
async def _frozen(vm: LiveCapture, workload: Workload, switch: _Switch) -> AsyncIterator[None]:
    """Have the workload stand still inside, and until it is settled what it writes to."""
    has_failed = True
    try:
        with phase("freeze"), vm.unless_starved():
            await workload.freeze()
        yield
        has_failed = False
    finally:
        with anyio.CancelScope(shield=True):
            await switch.settle(has_failed=has_failed)
            await workload.thaw()


async def shorten_chain(vm: LiveCapture, top: LayerId, layers: LayerStore) -> None:
    """Draw a long chain together, while the guest runs; what is no longer needed of it is deleted.

    Raises:
        VmmFailed: the VMM refused.
        LayerBroken: a layer is missing.
    """
    if len(layers.chain(top)) > CHAIN_LENGTH_MAX:
        await vm.collapse_disk(layers.base(top))
        layers.rebased(top)
