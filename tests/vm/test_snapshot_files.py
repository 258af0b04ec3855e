"""A real guest comes out of a file as it was, on a host that formats its disks anew."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from ramet.core.snapshot import SnapshotKind
from tests.vm.site import Children, Site

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

OVERLAY_BYTES = 600 << 20  # As no other test's, so that its base is this test's alone.
WRITE = """
head -c 3000000 /dev/urandom >/var/data
head -c 3000000 /dev/urandom >/dev/shm/data
mkdir /var/many; for i in $(seq 200); do echo $i >/var/many/$i; done
head -c 20000000 /dev/urandom >/var/gone; sync; rm /var/gone
sleep 100000 >/dev/null 2>&1 & echo $! >/dev/shm/pid
"""
SUMS = "cd /; cat var/data dev/shm/data $(ls -d var/many/* | sort) | sha256sum"


async def read(file: Path) -> AsyncIterator[bytes]:
    with file.open("rb") as opened:
        while chunk := opened.read(100_000):
            yield chunk


async def test_a_running_guest_is_exported_and_goes_on_from_the_file(
    site: Site, children: Children, tmp_path: Path
) -> None:
    snapshots, file = site.parts.snapshots, tmp_path / "file"
    await site.fleet.create("src", replace(site.spec(), overlay_bytes=OVERLAY_BYTES))
    children.names.append("src")
    await site.sh("src", WRITE)
    sums = await site.sh("src", SUMS)
    snapshot = await snapshots.create("src", SnapshotKind.STANDBY, "moving", {})
    await site.sh("src", "echo later >/var/data; echo later >/dev/shm/data; sync")
    base = site.effects.layers.base(snapshot.point.layer)
    async with snapshots.export("moving") as chunks:
        with file.open("wb") as opened:
            async for chunk in chunks:
                opened.write(chunk)
    await site.fleet.delete("src")
    await snapshots.delete("moving")
    base.unlink()
    print(f"file: {file.stat().st_size >> 20} MiB; {snapshot.memory_bytes=} {snapshot.disk_bytes=}")
    made = await snapshots.import_file(read(file))
    try:
        children.names += ["child", "grandchild"]
        (outcome,) = await snapshots.fork("moving", ["child"])
        assert outcome.error is None
        assert await site.sh("child", SUMS) == sums
        assert (
            await site.sh("child", "kill -0 $(cat /dev/shm/pid) && echo alive; hostname") == "alive\nchild\n"
        )
        await site.sh("child", "head -c 5000000 /dev/urandom >/var/new; sync; rm -r /var/many; sync")
        (outcome,) = await site.fleet.fork("child", ["grandchild"])
        assert outcome.error is None
        await site.fleet.stop("child")
        await site.fleet.start("child")
        for name in ("child", "grandchild"):
            assert await site.sh(name, "stat -c %s /var/new; ls /var | grep many || true") == "5000000\n"
            assert await site.sh(name, "dmesg | grep 'EXT4-fs error' || true") == ""
    finally:
        await snapshots.delete(made.id)
