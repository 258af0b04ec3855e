"""Memory and disk of a fork: shared with its parent and siblings, and never theirs to change."""

import hashlib
import re
from pathlib import Path

import anyio
import pytest

from ramet.linux.process import read_maps
from ramet.snapshots import capture
from ramet.vmm.qemu.driver import QemuVm
from tests.vm.site import MEMORY_BYTES, Children, Site

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

DATA_BYTES = 2 << 20
BALLOON_BYTES = 64 << 20
DROP_CACHES = "sync; echo 3 >/proc/sys/vm/drop_caches"


def _hash_capture(site: Site, name: str) -> str:
    """Return the hash of the file that the guest's memory is a private mapping of."""
    pid = site.rig(name).vm.runtime.pid
    ((start, end),) = [
        (start, end)
        for start, end, _, path in read_maps(pid)
        if "memfd:" in path and end - start == MEMORY_BYTES
    ]
    with open(f"/proc/{pid}/map_files/{start:x}-{end:x}", "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def test_a_child_that_discards_and_overwrites_all_it_can_changes_no_sibling_and_not_the_capture(
    site: Site, source: str, children: Children
) -> None:
    await site.sh(source, "head -c 4000000 /dev/urandom >/dev/shm/kept; md5sum /dev/shm/kept >/dev/shm/sum")
    await children.fork(source, "wild", "calm")
    before = await anyio.to_thread.run_sync(_hash_capture, site, "wild")
    assert before == await anyio.to_thread.run_sync(_hash_capture, site, "calm")
    vm = site.rig("wild").vm
    assert isinstance(vm, QemuVm)

    # Pages given back to the host by the balloon, then as many written as there are.
    assert "virtio_balloon" in await site.sh("wild", "cat /proc/modules")
    await site.sh("wild", f"rm /dev/shm/kept; {DROP_CACHES}")
    await vm._monitor.execute("balloon", value=BALLOON_BYTES)
    await site.wait_for(
        "wild", f"test $(sed -n 's/MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo) -lt {BALLOON_BYTES >> 9}"
    )
    await vm._monitor.execute("balloon", value=MEMORY_BYTES)
    await site.wait_for(
        "wild", f"test $(sed -n 's/MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo) -gt {MEMORY_BYTES >> 11}"
    )
    await site.run("wild", "sh", "-c", "head -c 80000000 /dev/zero | tr '\\0' x >/dev/shm/filled")
    assert int(await site.sh("wild", "stat -c %s /dev/shm/filled")) > 50_000_000

    assert await anyio.to_thread.run_sync(_hash_capture, site, "calm") == before
    for name in ("calm", source):
        await site.sh(name, f"md5sum -c /dev/shm/sum; {DROP_CACHES}")
    assert (await site.get_state("calm"))["hostname"] == "calm"
    await site.sh(source, "rm /dev/shm/kept")


async def test_siblings_share_what_they_have_not_changed(site: Site, source: str, children: Children) -> None:
    await children.fork(source, "one", "other")
    for name in ("one", "other"):
        await site.get_state(name)
        smaps = Path(f"/proc/{site.rig(name).vm.runtime.pid}/smaps").read_text()
        (of_guest,) = re.findall(
            rf"^[0-9a-f]+-[0-9a-f]+ .*memfd:.*\nSize: +{MEMORY_BYTES >> 10} kB\n(?:.+: .*\n)+",
            smaps,
            re.MULTILINE,
        )
        own_kib = int(re.findall(r"^Anonymous: +(\d+) kB", of_guest, re.MULTILINE)[0])
        print(f"own pages of the guest's memory in {name}: {own_kib} KiB")
        # It took its identity and answered a request; the kernel and busybox alone are ten times as much.
        assert 0 < own_kib < 8 << 10


async def test_writes_of_parent_and_children_stay_their_own(
    site: Site, source: str, children: Children
) -> None:
    await site.sh(source, "echo parent >/var/owner; echo parent >/dev/shm/owner; sync")
    await children.fork(source, "elder", "younger")
    for name in ("elder", source):
        await site.sh(name, f"echo {name} >/var/owner; echo {name} >/dev/shm/owner; {DROP_CACHES}")

    for name, owner in (("elder", "elder"), (source, source), ("younger", "parent")):
        told = await site.sh(name, f"{DROP_CACHES}; cat /var/owner /dev/shm/owner")
        assert told == f"{owner}\n{owner}\n", name


async def test_generations_of_forks_keep_what_each_had(site: Site, source: str, children: Children) -> None:
    await site.sh(source, "rm -f /var/line /dev/shm/line")
    parent = source
    for generation in range(3):
        add = f"echo {generation} >>/var/line; echo {generation} >>/dev/shm/line"
        await site.sh(parent, add)
        child = f"generation-{generation}"
        await children.fork(parent, child)
        parent = child

    told = await site.sh(parent, f"{DROP_CACHES}; cat /var/line; cat /dev/shm/line")
    assert told.split() == ["0", "1", "2", "0", "1", "2"]
    state = await site.get_state(parent)
    assert (state["hostname"], state["mac"]) == (parent, site.fleet.get(parent).mac)


async def test_a_source_forked_again_and_again_keeps_a_short_chain_and_every_child_its_own_past(
    site: Site, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "CHAIN_LENGTH_MAX", 3)
    layers = site.effects.layers
    children.names.append("often")
    await site.boot("often")
    lengths = []
    for number in range(6):
        await site.sh(
            "often", f"head -c {DATA_BYTES} /dev/urandom >/var/data{number}; md5sum /var/data* >/var/sums"
        )
        await children.fork("often", f"often-{number}")
        vm = site.rig("often").vm
        assert isinstance(vm, QemuVm)
        lengths.append(len(layers.chain(layers.id_of(await vm.top_layer()))))

    assert max(lengths) > 3, "the chain grew"
    assert max(lengths) <= 5, "and was drawn together"
    assert min(lengths[lengths.index(max(lengths)) :]) < max(lengths)
    for number in (0, 3, 5):
        told = await site.sh(f"often-{number}", f"{DROP_CACHES}; md5sum -c /var/sums; ls /var/data* | wc -l")
        assert told.split("\n")[-2] == str(number + 1)
    await site.sh("often", f"{DROP_CACHES}; md5sum -c /var/sums")

    # The source goes, and with it all that only it needed; its children do not notice.
    await site.fleet.delete("often")
    for number in (0, 3, 5):
        await site.sh(f"often-{number}", f"{DROP_CACHES}; md5sum -c /var/sums; echo more >/var/more; sync")


async def test_layers_go_with_the_last_who_needs_them(site: Site, source: str, children: Children) -> None:
    def count() -> int:
        return len(list((site.folder / "layers").glob("*.qcow2")))

    await children.fork(source, "first")
    before = count()
    await children.fork("first", "second")
    await children.fork("second", "third")
    assert count() > before
    for name in ("second", "third"):
        await site.fleet.delete(name)

    # What is more now is the frozen layer under the top of "first" alone.
    assert count() == before + 1
