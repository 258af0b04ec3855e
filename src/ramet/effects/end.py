"""The ends of an instance: its VMM's, its run's, and its own."""

import json
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

from ramet.core.errors import RametError
from ramet.core.spec import Exit, InstanceRecord
from ramet.effects.folder import CONSOLE_FILE, STARTED_LINE, drop_base, remove_folder
from ramet.effects.output import OUTPUT_FILE, keep_output
from ramet.effects.site import Rig, Site
from ramet.effects.starvation import keep_fed
from ramet.instance.events import VmmExited
from ramet.instance.transitions import is_starting, is_waking
from ramet.logs.reading import read_end
from ramet.vmm.port import ExitReason

STOP_GRACE_S: Final = 5.0
"""What the workload gets between SIGTERM and SIGKILL."""
STOP_ANSWER_TIMEOUT_S: Final = 5.0
STOP_ATTEMPT_COUNT: Final = 2
"""A connection may be lost with the request on it."""
POWER_OFF_TIMEOUT_S: Final = 20.0
LAST_OUTPUT_TIMEOUT_S: Final = 5.0
"""What a VMM that has ended left in its socket is read in no time, unless the disk is slow."""
CONSOLE_TAIL_BYTES: Final = 16 << 10

_EXIT_LINE: Final = re.compile(rb"RAMET-GUEST exit (\{.*\})")
_FAILED_LINE: Final = re.compile(rb"RAMET-GUEST failed (.*)")
_REASONS: Final = {
    ExitReason.GUEST_RESET: "the guest reset itself or its kernel panicked; see the vmm log",
    ExitReason.UNKNOWN: "the VMM ended without a word; see the vmm log",
}


async def watch(site: Site, rig: Rig) -> VmmExited:
    """Wait for the end of a VMM and tell how it came about."""
    folder = site.instance_folder(rig.instance)
    async with anyio.create_task_group() as group:
        group.start_soon(keep_fed, rig)
        async with anyio.create_task_group() as fetching:
            gone = anyio.Event()
            fetching.start_soon(keep_output, rig, folder / OUTPUT_FILE, gone)
            reason = await rig.vm.wait_exited()
            gone.set()
            fetching.cancel_scope.deadline = anyio.current_time() + LAST_OUTPUT_TIMEOUT_S
        group.cancel_scope.cancel()
    end, guest_reason = await to_thread.run_sync(read_exit, folder / CONSOLE_FILE)
    text = guest_reason or ("" if end is not None else _REASONS.get(reason, ""))
    return VmmExited(end, text, time.time(), rig.vm.runtime)


def read_exit(console: Path) -> tuple[Exit | None, str]:
    """Return how the workload ended, and why it could not be started, as the guest said on its console."""
    tail = read_end(console, CONSOLE_TAIL_BYTES).rpartition(STARTED_LINE)[2]
    failed = _FAILED_LINE.findall(tail)
    if failed:
        return None, f"the guest could not start: {failed[-1].decode(errors='replace').strip()}"
    told = _EXIT_LINE.findall(tail)
    if not told:
        return None, ""
    try:
        end = json.loads(told[-1])
        return Exit(end["code"], end.get("signal"), str(end.get("message") or "")), ""
    except (ValueError, KeyError, TypeError):
        return None, "the guest's last words cannot be read; see the vmm log"


async def shut_down(rig: Rig, write_out_s: float) -> None:
    """Ask the guest to power off; end its VMM if it does not. Returns when the VMM is gone.

    `write_out_s` is how much longer than others it may take to write out what it has not written.
    """
    with suppress(RametError):  # A guest that cannot be asked is one that has to be ended, as follows.
        for _ in range(STOP_ATTEMPT_COUNT):
            channel = await rig.channel(STOP_ANSWER_TIMEOUT_S)
            is_taken = await channel.shutdown(grace_s=STOP_GRACE_S)
            taken_s = STOP_GRACE_S + POWER_OFF_TIMEOUT_S + write_out_s
            timeout_s = taken_s if is_taken else STOP_ANSWER_TIMEOUT_S
            with anyio.move_on_after(timeout_s):
                await rig.vm.wait_exited()
                break
            if is_taken:
                break
    await rig.vm.kill()


async def release(site: Site, record: InstanceRecord) -> None:
    """Give back what only a running instance needs: TAP and channel. Slot, disk and logs stay. Idempotent.

    The TAP at which a sleeper is called is no running instance's, and stays, too.

    Raises:
        RametError: a part of it is still there; to be tried again.
    """
    rig = site.rigs.get(record.id)
    if rig is not None:
        await rig.close()
        async with rig.capturing:  # What is still being captured of it fails now, and tells its last layer.
            await rig.close()
        try:
            if record.capture is not None:  # It sleeps, or wakes already.
                await _end_stored(site, rig)
        finally:
            site.rigs.pop(record.id, None)
    elif record.id in site.unended:
        await end_unheld(site, record)
    drop_base(site.instance_folder(record.id))
    is_called = record.capture is not None and site.network.is_armed(record.id)
    if record.identity.slot is not None and not is_called:
        await site.network.detach(record.id)


async def _end_stored(site: Site, rig: Rig) -> None:
    """End a VMM whose memory has been stored. It was ended then; if that failed, it is still paused."""
    try:
        await rig.vm.kill()
    except BaseException:
        site.unended.add(rig.instance)
        with anyio.CancelScope(shield=True):
            await rig.vm.detach()
        raise


async def end_unheld(site: Site, record: InstanceRecord) -> None:
    """End a VMM that could not be spoken to, or that outlived the failure of its start or of its end.

    Looked for on the host: a recorded pid may be another's now, and what failed may have recorded none.
    """
    is_booting = is_starting(record) and not is_waking(record)
    is_unended = record.id in site.unended
    may_have_one = record.runtime is not None or record.state_error or is_unended or is_booting
    if not may_have_one:
        return
    for driver in site.drivers.values():  # It may have been put back to a snapshot on another one.
        runtime = (await driver.find()).get(record.id)
        if runtime is not None:
            await driver.end(runtime)
    site.unended.discard(record.id)


async def destroy(site: Site, record: InstanceRecord) -> None:
    """Remove an instance from the host, in an order that can be begun again at any point.

    Raises:
        RametError: a part of it is still there, and held.
    """
    rig = site.rigs.get(record.id)
    layer = record.layer
    if rig is not None:
        await rig.close()
        await rig.vm.kill()
        async with rig.capturing:  # What is still being captured of it fails now, and tells its last layer.
            layer = rig.layer
        await rig.close()
        site.rigs.pop(record.id, None)
    else:
        await end_unheld(site, record)
    if layer is not None:
        site.layers.release(layer)
    await to_thread.run_sync(remove_folder, site.instance_folder(record.id))
    # Last: from here on the slot may be another's, so a destruction begun again must not come back to it.
    await site.network.release(record.id)
