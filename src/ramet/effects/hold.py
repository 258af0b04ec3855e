"""Taking hold of VMMs that an earlier daemon started; of the silent ones, when they answer.

Nobody can tell a VMM that hangs from one that is busy. So it is left alone, and asked again as long as it
lives.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import anyio
import structlog
from anyio import to_thread

from ramet.core.errors import RametError
from ramet.core.ids import InstanceId, LayerId
from ramet.core.spec import InstanceRecord, Runtime
from ramet.effects.end import read_exit
from ramet.effects.folder import CONSOLE_FILE
from ramet.effects.site import Rig, Site
from ramet.instance.events import Found, VmmExited
from ramet.vmm.port import Driver, LiveCapture, Vm, VmmSilent

REACH_INTERVAL_S: Final = 2.0
"""How long a silent VMM is left in peace before it is asked again."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Held:
    """A VMM that answers, and the disk layer it writes to if it can tell."""

    vm: Vm
    layer: LayerId | None


async def hold(site: Site, driver: Driver, instance: InstanceId, runtime: Runtime) -> Held:
    """Take hold of a VMM found on this host. A guest that we paused, and did not live to resume, runs again.

    Raises:
        VmmSilent: it runs and does not answer.
        VmmFailed: it is gone.
    """
    vm = await driver.adopt(instance, site.instance_folder(instance), runtime)
    try:
        if await vm.is_paused():
            await vm.resume()
            log.info("paused_guest_resumed", instance=instance)
        layer = site.layers.id_of(await vm.top_layer()) if isinstance(vm, LiveCapture) else None
    except BaseException as error:
        with anyio.CancelScope(shield=True):
            await vm.detach()
        if isinstance(error, RametError):
            raise VmmSilent(str(error), instance=instance) from error
        raise
    return Held(vm, layer)


async def reach(
    site: Site, record: InstanceRecord, is_wanted: Callable[[], bool]
) -> Found | VmmExited | None:
    """Wait until the silent VMM of `record` can be held, and give it a rig; or until it is gone.

    Returns None, having touched nothing, as soon as it answers when it `is_wanted` no more.

    Raises:
        LayerBroken: the disk it writes to has lost a layer.
    """
    driver, runtime, layer = site.driver_of(record), record.runtime, record.layer
    assert runtime is not None, "it was found"
    assert layer is not None, "what has no disk has no VMM"
    while is_wanted():
        with anyio.move_on_after(REACH_INTERVAL_S):
            await driver.wait_gone(runtime)
            return await tell_end(site, record, "it ended while it did not answer")
        try:
            held = await hold(site, driver, record.id, runtime)
        except RametError:
            continue  # Silent still, or gone: its process tells.
        if not is_wanted():
            await held.vm.detach()
            return None
        top = held.layer or layer
        site.rigs[record.id] = Rig(record.id, held.vm, top)
        if top != layer:
            site.layers.hold(top)
            site.layers.release(layer)
        log.info("silent_vmm_answers", instance=record.id)
        return Found(held.vm.runtime, top)
    return None


async def tell_end(site: Site, record: InstanceRecord, otherwise: str) -> VmmExited:
    """Return how an instance ended that nobody watched: what its guest said, or else `otherwise`."""
    end, reason = await to_thread.run_sync(read_exit, site.instance_folder(record.id) / CONSOLE_FILE)
    if end is None and not reason:
        reason = otherwise
    return VmmExited(end, reason, time.time())
