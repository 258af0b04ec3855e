"""A limit of what a machine's disks let through, of all of them together.

It is put on the disks as the guest sees them, above all layers: so layers come and go below it (a capture, a
collapse) without a word, and what QEMU itself copies between them is not held up. It is no part of the device
state, and it does not lengthen a pause: QEMU lets through at once what waits when it stops.
"""

from typing import Final

from ramet.vmm.qemu.monitor import Monitor

_GROUP: Final = "disks"
_UNLIMITED: Final = dict.fromkeys(("bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)


async def limit_disks(monitor: Monitor, rate_bytes_per_s: int) -> None:
    """Hold all disks together to so much, read and written.

    Raises:
        VmmFailed: it was refused, or QEMU is gone.
    """
    blocks = await monitor.execute("query-block")
    assert isinstance(blocks, list)
    for block in blocks:
        # By what QEMU calls it: of a disk on PCI its backend's path, and its name would not do.
        limit = {"id": block["qdev"], "group": _GROUP, "bps": rate_bytes_per_s, **_UNLIMITED}
        await monitor.execute_with("block_set_io_throttle", limit)
