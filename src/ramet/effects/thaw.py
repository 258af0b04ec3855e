"""Letting a workload run that was frozen for a capture and may not have been thawed.

An earlier daemon may have frozen it and not lived to thaw it, or a guest has not answered that it was thawed.
Nobody knows whether it stands still, so every guest that is found again is told, and told again until it has
answered: it keeps nobody waiting but those who want to capture it.
"""

from typing import Final

import anyio
import structlog

from ramet.core.errors import RametError
from ramet.effects.site import Rig

ANSWER_TIMEOUT_S: Final = 20.0
RETRY_S: Final = 1.0
"""How long until a guest that refused, or whose connection was lost, is told again."""

log = structlog.get_logger(__name__)


async def thaw(rig: Rig) -> None:
    """Thaw the workload of a running guest; returns too when its VMM ends. Never fails."""
    async with anyio.create_task_group() as group:

        async def give_up_on_exit() -> None:
            await rig.vm.wait_exited()
            group.cancel_scope.cancel()

        group.start_soon(give_up_on_exit)
        await _thaw_at_last(rig)
        group.cancel_scope.cancel()


async def _thaw_at_last(rig: Rig) -> None:
    is_told = False
    while True:
        try:
            # Between freeze and pause of a capture, a thaw would let the child run before it is itself.
            async with rig.capturing:
                await (await rig.channel(ANSWER_TIMEOUT_S)).thaw()
                rig.still.end()
            return
        except RametError as error:
            if not is_told:
                log.warning("guest_not_thawed_yet", instance=rig.instance, error=str(error))
            is_told = True
        await anyio.sleep(RETRY_S)
