"""Guests that a full disk of the host has stopped in the middle of a write.

Nothing of theirs is lost: the write is tried again when they are told to go on. Nobody tells us of room, so
they are told again and again; where there is none yet, they stop again.
"""

import asyncio
from contextlib import suppress
from typing import Final

import anyio
import structlog

from ramet.effects.site import Rig
from ramet.vmm.port import VmmFailed

RETRY_S: Final = 2.0

log = structlog.get_logger(__name__)


async def keep_fed(rig: Rig) -> None:
    """Let the guest go on whenever it stands still for want of room, until cancelled. Never fails."""
    starved = asyncio.Event()
    with rig.vm.when_starved(starved.set):
        if rig.vm.is_starved:
            starved.set()
        while True:
            await starved.wait()
            log.warning("guest_waits_for_room", instance=rig.instance)
            while rig.vm.is_starved:
                await anyio.sleep(RETRY_S)
                starved.clear()
                with suppress(VmmFailed):  # Silent: it is told again. Gone: whoever watches it knows.
                    await rig.vm.resume()
                with anyio.move_on_after(RETRY_S):
                    await starved.wait()
            starved.clear()
            log.info("guest_goes_on", instance=rig.instance)
