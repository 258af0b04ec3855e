"""Capturing a guest while it runs.

The order decides how short the pause is: memory is copied once while the guest runs, the file systems are
written out, the workload is frozen, and only then the processors stand still while the disk switches to a
new layer, the devices are saved, and the memory is copied again over warm pages. The source then goes on
whatever happened; its workload is thawed last.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import anyio

from ramet.core.ids import LayerId
from ramet.disks.layers import CHAIN_LENGTH_MAX, LayerStore
from ramet.linux.memfd import SealableFile
from ramet.vmm.port import Capture, LiveCapture


class Workload(Protocol):
    """What a capture needs of the guest inside."""

    async def sync(self) -> None: ...
    async def freeze(self) -> None: ...
    async def thaw(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Source:
    """A running VM that is to be captured. Sizes in bytes."""

    name: str
    vm: LiveCapture
    workload: Workload
    layer: LayerId
    memory_bytes: int
    overlay_bytes: int


@dataclass(frozen=True, slots=True)
class Taken:
    """One instant of a guest: its sealed memory, and the disk layer that was frozen with it.

    `pause_s` is how long its processors stood still; the bytes are what was copied before and in the pause.
    """

    capture: Capture
    frozen: LayerId
    new_top: LayerId
    pause_s: float
    total_s: float
    ahead_bytes: int
    paused_bytes: int


async def take_capture(
    source: Source,
    layers: LayerStore,
    *,
    before_pause: Callable[[], None],
    record_switch: Callable[[LayerId], Awaitable[None]],
) -> Taken:
    """Capture `source`, which goes on writing to a new layer over the frozen one.

    Args:
        before_pause: called when what the guest does from here on may no longer be in the capture.
        record_switch: makes the source's new top layer durable; called while its workload is still frozen.

    Raises:
        VmmFailed, LayerBroken, Broken: it did not work; the source runs on, as before.
    """
    began = time.perf_counter()
    await _shorten_chain(source, layers)
    new_top = layers.create_on(source.layer, source.overlay_bytes)
    capture = Capture(SealableFile("ramet-memory", source.memory_bytes), SealableFile("ramet-devices"))
    switched = False
    try:
        await source.vm.prepare_disk(layers.path(new_top))
        await source.workload.sync()
        ahead_bytes = await source.vm.copy_ahead(capture)
        before_pause()
        try:
            await source.workload.freeze()
            paused_at = time.perf_counter()
            async with source.vm.paused():
                await source.vm.switch_disk(layers.path(new_top))
                switched = True
                await source.vm.save_devices(capture)
                paused_bytes = await source.vm.copy_rest(capture)
            pause_s = time.perf_counter() - paused_at
        finally:
            with anyio.CancelScope(shield=True):
                if switched:
                    layers.move(source.layer, new_top)
                    await record_switch(new_top)
                await source.workload.thaw()
        capture.seal()
    except BaseException:
        capture.close()
        if not switched:
            with anyio.CancelScope(shield=True):
                await source.vm.forget_disk(layers.path(new_top))
            layers.release(new_top)
        raise
    total_s = time.perf_counter() - began
    return Taken(capture, source.layer, new_top, pause_s, total_s, ahead_bytes, paused_bytes)


async def _shorten_chain(source: Source, layers: LayerStore) -> None:
    """Draw a long chain together, while the guest runs; what is no longer needed of it is deleted."""
    if len(layers.chain(source.layer)) > CHAIN_LENGTH_MAX:
        await source.vm.collapse_disk(layers.base(source.layer))
        layers.sweep()
