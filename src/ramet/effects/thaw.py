"""Letting a workload run that an earlier daemon froze for a capture and did not live to thaw.

Nobody knows whether it stands still, so every guest that is found again is told. A guest that does not answer
is left as it is: it keeps nobody waiting but those who want to capture it.
"""

from typing import Final

import anyio
import structlog

from ramet.core.errors import RametError
from ramet.effects.site import Rig

THAW_TIMEOUT_S: Final = 20.0

log = structlog.get_logger(__name__)


async def thaw(rig: Rig) -> None:
    """Thaw the workload of a guest found running; returns too when its VMM ends. Never fails."""
    # Between the freeze and the pause of a capture, a thaw would let the child run before it is itself.
    async with rig.capturing, anyio.create_task_group() as group:

        async def give_up_on_exit() -> None:
            await rig.vm.wait_exited()
            group.cancel_scope.cancel()

        group.start_soon(give_up_on_exit)
        try:
            await (await rig.channel(THAW_TIMEOUT_S)).thaw()
        except RametError as error:
            log.warning("adopted_guest_does_not_answer", instance=rig.instance, error=str(error))
        group.cancel_scope.cancel()
