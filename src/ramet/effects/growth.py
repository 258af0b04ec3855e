"""Memory that comes to a guest after it has booted, beside what it boots with."""

import structlog

from ramet.core.errors import RametError
from ramet.core.spec import InstanceRecord
from ramet.effects.site import Rig
from ramet.vmm.port import Resizable

log = structlog.get_logger(__name__)


async def plug_memory(rig: Rig, record: InstanceRecord) -> None:
    """Have a guest that has answered be given the memory there is room for. Never fails: it does without.

    It takes its time to use it. A copy of it has what it had.
    """
    spec = record.spec
    if not spec.hotplug_bytes or not isinstance(rig.vm, Resizable):
        return
    try:
        await rig.vm.resize(memory_bytes=spec.memory_bytes_max)
    except RametError as error:
        log.warning("memory_not_plugged", instance=record.id, error=str(error))
