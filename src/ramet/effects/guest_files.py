"""Files of a guest, as the fleet's callers see them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ramet.effects.site import Rig
from ramet.guest import files
from ramet.instance.fleet_types import PathStat


async def stat_path(rig: Rig, path: str, *, follow_links: bool) -> PathStat:
    """Tell what is at a path of the guest. Raises as `Fleet.stat_path`."""
    found = await files.stat_path(await rig.channel(), path, follow_links=follow_links)
    return PathStat(
        exists=found.exists,
        is_dir=found.is_dir,
        is_file=found.is_file,
        is_symlink=found.is_symlink,
        link_target=found.link_target,
        mode=found.mode,
        size_bytes=found.size_bytes,
        uid=found.uid,
        gid=found.gid,
        mtime_ns=found.mtime_ns,
        error=found.error,
    )


@asynccontextmanager
async def open_archive(rig: Rig, path: str, *, follow_links: bool) -> AsyncIterator[AsyncIterator[bytes]]:
    """Read a path of the guest as a tar stream. Raises as `Fleet.open_archive`."""
    channel = await rig.channel()
    async with files.open_archive(channel, path, follow_links=follow_links) as chunks:
        yield chunks


async def put_archive(rig: Rig, path: str, chunks: AsyncIterator[bytes], *, keep_owner: bool) -> None:
    """Unpack a tar stream into a directory of the guest. Raises as `Fleet.put_archive`."""
    await files.put_archive(await rig.channel(), path, chunks, keep_owner=keep_owner)
