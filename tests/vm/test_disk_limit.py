"""What a real guest's disks let through under a limit: each transfer takes its time at least, on any host."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.wire_api.volumes import CreateVolume, VolumeMount
from tests.vm.daemon import Daemon, own_daemon

pytestmark = pytest.mark.vm

RATE_BYTES_PER_S = 4_000_000
MIB = 1 << 20
SIZE_MIB = 8
BURST_BYTES = RATE_BYTES_PER_S // 10 + 2 * MIB
"""What may come at once: a tenth of a second's worth, and the request that does not fit in it any more."""
READS = "dd if=/var/block of=/dev/null bs=1M"


def writes(path: str) -> str:
    return f"dd if=/dev/zero of={path} bs=1M count={SIZE_MIB} iflag=fullblock conv=fsync"


@pytest.fixture
def daemon(kernel_package: Path | None) -> Iterator[Daemon]:
    with own_daemon(kernel_package) as daemon:
        daemon.start()
        daemon.client.import_image(str(daemon.folder / "image"), "demo:1")
        yield daemon


def demand_bounded(daemon: Daemon, name: str, command: str, size_bytes: int = SIZE_MIB * MIB) -> None:
    """Check that a command that moves so much takes as long as the limit demands, by the guest's clock."""
    dropped = "sync; echo 3 >/proc/sys/vm/drop_caches"
    timed = f"read was _ </proc/uptime; {command}; read now _ </proc/uptime; echo $was $now >&3"
    was, now = map(float, daemon.sh(name, f"{dropped}; {{ {timed}; }} 3>&1 >/dev/null 2>&1").split())
    assert now - was >= (size_bytes - BURST_BYTES) / RATE_BYTES_PER_S


def test_reads_and_writes_are_bounded_whatever_the_instance_goes_through(daemon: Daemon) -> None:
    client = daemon.client
    daemon.boot("slow", disk_io_bps=f"{RATE_BYTES_PER_S}B/s")
    demand_bounded(daemon, "slow", writes("/var/block"))
    demand_bounded(daemon, "slow", READS)
    # Forked while requests wait: none of them is lost, in neither.
    daemon.sh("slow", f"({writes('/var/other')} && touch /var/done) >/dev/null 2>&1 &")
    client.fork("slow", "kid")
    for name in ("slow", "kid"):
        daemon.sh(name, "until [ -e /var/done ]; do sleep 0.1; done")
        assert int(daemon.sh(name, "stat -c %s /var/other")) == SIZE_MIB * MIB
    demand_bounded(daemon, "kid", READS)
    demand_bounded(daemon, "slow", writes("/var/block"))
    client.standby("slow")
    client.restore("slow")
    demand_bounded(daemon, "slow", READS)
    daemon.kill()
    daemon.start()
    demand_bounded(daemon, "slow", READS)
    for name in ("slow", "kid"):
        client.delete(name)


def test_all_disks_share_it(daemon: Daemon) -> None:
    client = daemon.client
    client.create_volume(CreateVolume("work", 1))
    daemon.boot("slow", disk_io_bps=f"{RATE_BYTES_PER_S}B/s", volumes=[VolumeMount("work", "/work")])
    both = f"{writes('/var/block')} & {writes('/work/block')}; wait"
    demand_bounded(daemon, "slow", both, size_bytes=2 * SIZE_MIB * MIB)
    client.delete("slow")
    client.delete_volume("work")
