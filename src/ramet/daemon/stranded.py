"""VMMs whose pager is gone: their guests sleep in their next page fault for ever, and nothing tells of it."""

import signal
from collections.abc import Collection, Iterable

import structlog
from anyio import to_thread

from ramet.linux.process import HeldProcess
from ramet.linux.userfault import awaits_pages
from ramet.vmm.port import Driver

log = structlog.get_logger(__name__)


async def end_stranded(drivers: Iterable[Driver], served: Collection[int]) -> None:
    """End every VMM that waits for pages and is not `served` by a pager, which are pids. Never fails.

    It ends as one that crashed.
    """
    for driver in drivers:
        for instance, runtime in (await driver.find()).items():
            if runtime.pid in served:
                continue
            try:
                process = HeldProcess(runtime.pid, start_ticks=runtime.start_ticks)
            except ProcessLookupError:
                continue
            try:
                if await to_thread.run_sync(awaits_pages, runtime.pid):
                    process.send_signal(signal.SIGKILL)
                    await process.wait_exited()
                    log.error("guest_without_pager_ended", instance=instance, pid=runtime.pid)
            except OSError as error:
                if not process.is_exited:
                    log.warning("guest_not_looked_at", instance=instance, error=str(error))
            finally:
                process.close()
