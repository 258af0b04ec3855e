"""Storing the memory of a guest that is put to sleep.

Most of it is written while the guest runs. Then its workload is frozen, its processors stand still, the rest
is written, and all of it made durable. Only then it may end. Until then it can go on at once, as if nothing
had been asked of it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio

from ramet.snapshots.capture import Workload
from ramet.snapshots.store import Draft
from ramet.vmm.port import LiveCapture


async def suspend(
    vm: LiveCapture, workload: Workload, draft: Draft, end: Callable[[], Awaitable[None]]
) -> None:
    """Store the memory of `vm` in `draft`, and have `end` end it while it still stands.

    If anything fails, or this is cancelled, before `end` is called, the guest goes on.

    Raises:
        VmmFailed, CaptureBroken, GuestUnreachable: it did not work.
    """
    with vm.unless_starved():
        await workload.sync()
    await vm.copy_ahead(draft.capture)
    await draft.write_out()
    is_ending = False
    async with _frozen(vm, workload, lambda: not is_ending), vm.paused():
        await vm.save_devices(draft.capture)
        await vm.copy_rest(draft.capture)
        await draft.commit()
        is_ending = True
        vm.stay_paused()
        with anyio.CancelScope(shield=True):
            await end()


@asynccontextmanager
async def _frozen(vm: LiveCapture, workload: Workload, goes_on: Callable[[], bool]) -> AsyncIterator[None]:
    """Have the workload stand still inside, and let it run again if it `goes_on`."""
    try:
        with vm.unless_starved():
            await workload.freeze()
        yield
    finally:
        if goes_on():
            with anyio.CancelScope(shield=True):
                await workload.thaw()
