"""Real guests mount volumes: what one writes stays, many read, and an overlay is the instance's own."""

import io
import tarfile
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from ramet.core.errors import RametError
from ramet.core.ids import VolumeId
from ramet.core.snapshot import SnapshotKind
from ramet.core.spec import InstanceSpec, State
from ramet.core.volumes import GIB, VolumeMount, VolumeWritable
from ramet.instance.events import AttachAsked, DetachAsked
from ramet.volumes.errors import VolumeInUse, VolumeUnclean
from tests.vm.site import Site

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

PART_BYTES = 64 << 20


@pytest.fixture
async def named(site: Site) -> AsyncIterator[list[str]]:
    """Take names of instances, which go with the test, and all volumes after them."""
    names: list[str] = []
    yield names
    for name in names:
        try:
            await site.fleet.delete(name)
        except RametError:
            assert name not in [view.record.name for view in site.fleet.list()]
    for snapshot in site.parts.snapshots.list():
        await site.parts.snapshots.delete(snapshot.id)
    for volume in site.parts.volumes.list():
        await site.parts.volumes.delete(volume.id)


async def archive() -> AsyncIterator[bytes]:
    """Yield a tar.gz of a folder with a file that is another user's, and a link."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        root = tarfile.TarInfo("./")
        root.type, root.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(root)
        file = tarfile.TarInfo("./sub/file")
        file.size, file.uid, file.gid, file.mode = 7, 1000, 1001, 0o640
        tar.addfile(file, io.BytesIO(b"content"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "sub/file"
        tar.addfile(link)
    yield packed.getvalue()


def having(site: Site, *mounts: VolumeMount, parts: tuple[int, ...] = ()) -> InstanceSpec:
    return replace(site.spec(), volumes=mounts, overlay_parts=parts)


async def test_a_volume_outlives_runs_and_instances_and_is_read_by_many(site: Site, named: list[str]) -> None:
    volumes, fleet = site.parts.volumes, site.fleet
    filled = (await volumes.create("filled", GIB, {}, archive=archive())).id
    empty = (await volumes.create("empty", GIB, {}, "own-id")).id
    assert empty == VolumeId("own-id")
    named += ["writer", "reader", "other"]
    spec = having(site, VolumeMount(filled, "/srv/data"), VolumeMount(empty, "/srv/data/empty"))
    assert (await fleet.create("writer", spec)).record.state is State.RUNNING
    assert await site.sh("writer", "cat /srv/data/link; stat -c ' %u %g %a' /srv/data/sub/file") == (
        "content 1000 1001 640\n"
    )
    await site.sh("writer", "echo kept >/srv/data/new; echo also >/srv/data/empty/file")
    with pytest.raises(VolumeWritable):
        await fleet.fork("writer", ["kid"])
    with pytest.raises(VolumeWritable):
        await site.parts.snapshots.create("writer", SnapshotKind.STANDBY, None, {})
    with pytest.raises(VolumeInUse, match="is written to by instance writer"):
        await fleet.create("reader", having(site, VolumeMount(filled, "/data", is_read_only=True)))
    # Asleep and awake again, it goes on with what it had.
    await fleet.standby("writer")
    await fleet.restore("writer")
    await site.sh("writer", "echo more >>/srv/data/new")
    await fleet.stop("writer")
    await fleet.start("writer")
    assert await site.sh("writer", "cat /srv/data/new /srv/data/empty/file") == "kept\nmore\nalso\n"
    await fleet.stop("writer")
    await fleet.change_volumes("writer", DetachAsked(filled))
    # Read by two at once, a fork of one among them; what is written goes nowhere.
    reading = having(site, VolumeMount(filled, "/data", is_read_only=True))
    assert (await fleet.create("reader", reading)).record.state is State.RUNNING
    (outcome,) = await fleet.fork("reader", ["other"])
    assert outcome.error is None
    for name in ("reader", "other"):
        assert await site.sh(name, "cat /data/new; touch /data/x 2>/dev/null || echo refused") == (
            "kept\nmore\nrefused\n"
        )


async def test_an_overlay_is_written_to_kept_and_forked_and_ends_at_its_size(
    site: Site, named: list[str]
) -> None:
    volumes, fleet = site.parts.volumes, site.fleet
    base = (await volumes.create("base", GIB, {}, archive=archive())).id
    named += ["source", "other", "kid"]
    named.remove("source")
    named.append("one")
    mount = VolumeMount(base, "/data", is_read_only=True, overlay_part=0)
    await fleet.create("one", having(site, mount, parts=(PART_BYTES,)))
    await fleet.create("other", having(site, mount, parts=(PART_BYTES,)))
    await site.sh("one", "echo mine >/data/sub/file; sync")
    assert await site.sh("other", "cat /data/sub/file") == "content"
    (outcome,) = await fleet.fork("one", ["kid"])
    assert outcome.error is None
    await site.sh("one", "echo later >/data/sub/file")
    assert await site.sh("kid", "cat /data/sub/file; echo kid >/data/sub/file") == "mine\n"
    # As large as it was asked to be, and no larger: the root's disk has room yet.
    full = await site.run("kid", "sh", "-c", "head -c 80000000 /dev/zero >/data/big")
    assert full.exit_code != 0
    await site.sh("kid", "rm /data/big; head -c 80000000 /dev/zero >/var/big; rm /var/big")
    for name in ("one", "kid"):
        await fleet.stop(name)
        await fleet.start(name)
    assert await site.sh("one", "cat /data/sub/file") == "later\n"
    assert await site.sh("kid", "cat /data/sub/file") == "kid\n"


async def test_a_volume_whose_writer_was_killed_is_read_after_it_was_mounted_once_more(
    site: Site, named: list[str]
) -> None:
    volume = (await site.parts.volumes.create("data", GIB, {})).id
    named += ["writer", "reader"]
    await site.fleet.create("writer", having(site, VolumeMount(volume, "/data")))
    await site.sh("writer", "echo kept >/data/file; sync")
    await site.rig("writer").vm.kill()
    await site.fleet.wait("writer", State.STOPPED, 30)
    spec = site.fleet.get("writer").record.spec
    await site.fleet.change_volumes("writer", DetachAsked(volume))
    reading = having(site, VolumeMount(volume, "/data", is_read_only=True))
    with pytest.raises(VolumeUnclean):
        await site.fleet.create("reader", reading)
    await site.fleet.change_volumes("writer", AttachAsked(spec.volumes[0]))
    await site.fleet.start("writer")
    await site.fleet.stop("writer")
    await site.fleet.change_volumes("writer", DetachAsked(volume))
    await site.fleet.create("reader", reading)
    assert await site.sh("reader", "cat /data/file") == "kept\n"
