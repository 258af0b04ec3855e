"""Named snapshots as files: read out as a stream, and made again of one, on this host or another.

Nothing of a file is to be seen before the last byte of it was checked.
"""

import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path

from anyio import to_thread

from ramet.core.errors import Conflict, Invalid
from ramet.core.ids import CaptureId, InstanceId, SnapshotId, is_name, mint_id
from ramet.core.snapshot import SnapshotRecord
from ramet.core.spec import InstanceSpec, RestorePoint
from ramet.disks.layers import LayerBroken, LayerDraft
from ramet.disks.qcow2 import CLUSTER_BYTES
from ramet.effects.restore_point import kept
from ramet.effects.site import Site
from ramet.images import Image, parse_reference
from ramet.images.errors import ImageNotFound, InvalidReference
from ramet.snapshots.catalog import SnapshotCatalog
from ramet.snapshots.export_check import read_manifest
from ramet.snapshots.export_file import (
    BLOCK_BYTES,
    CHECKSUMS,
    END,
    MANIFEST,
    MANIFEST_BYTES_MAX,
    PAGE_BYTES,
    SCHEMA,
    SLAB_BYTES,
    BadExport,
    ExportManifest,
    PartReader,
    Runs,
    checksums,
    entry_header,
    head_of,
    packed,
    padding,
    runs_of,
    runs_of_memory,
)
from ramet.snapshots.store import CaptureBroken, Draft
from ramet.vmm.port import Capture

_Write = Callable[[int, bytes], None]


class SnapshotImageDiffers(Conflict):
    """Memory remembers pieces of its image's root disk, and this host has made another of the same image."""

    code = "snapshot_image_differs"
    remedy_default = "add the image on this host with the mkfs.erofs of the host that the snapshot is of"


class SnapshotFiles:
    """The snapshots of a site, to and from files."""

    def __init__(self, site: Site, catalog: SnapshotCatalog) -> None:
        self._site, self._catalog = site, catalog

    @asynccontextmanager
    async def reading(self, ref: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """Have a snapshot as a stream, inside; it may be deleted meanwhile.

        Raises:
            SnapshotNotFound, SnapshotAmbiguous
            ImageNotFound: that of a snapshot with memory is gone.
            LayerBroken, CaptureBroken: it has lost a part; also while it is read.
        """
        site, record = self._site, self._catalog.get(ref)
        async with AsyncExitStack() as stack:
            stack.enter_context(kept(site, record.point))
            disk = stack.enter_context(site.layers.reader(record.point.layer))
            sources: dict[str, Runs] = {"disk": disk.runs}
            capture = rootfs = None
            if record.point.capture is not None:
                capture = await stack.enter_async_context(site.captures.opened(record.point.capture))
                sources |= await to_thread.run_sync(_sources_of, capture)
                rootfs = site.images.rootfs_of(record.spec.image_digest)
            manifest = await to_thread.run_sync(_describe, record, disk.size_bytes, capture, rootfs, sources)
            yield _in_threads(packed(manifest, sources))

    async def add(self, chunks: AsyncIterator[bytes], name: str | None = None) -> SnapshotRecord:
        """Make a snapshot of what `reading` gave, called `name` or as it was; durable when this returns.

        It is a new one, with an id of its own; which instance it is of stays as it was.

        Raises:
            BadExport: it is no exported snapshot, or is cut off or damaged.
            Invalid: not a name.
            ImageNotFound: its image is not here.
            SnapshotImageDiffers: it has memory, and its image is another here.
            SnapshotNameTaken: its instance has one of that name.
            RametError: there is no room for it; as after all others, nothing of it is left.
        """
        if name is not None and not is_name(name):
            raise Invalid(
                f"{name[:100]!r} is not a name", remedy="use up to 63 lowercase letters, digits and dashes"
            )
        file = _FileReader(chunks)
        manifest = await file.read_manifest()
        source, name = InstanceId(manifest.source), name or manifest.name
        image = self._image(manifest.spec)
        if name is not None:
            self._catalog.reserve(source, name)
        try:
            if manifest.rootfs_sha256 not in (None, await _sha256(image.rootfs, manifest)):
                raise SnapshotImageDiffers(
                    f"the root disk of {image.name} is another one here than where the snapshot was taken"
                )
            return await self._add(file, manifest, source, name)
        finally:
            if name is not None:
                self._catalog.give_back(source, name)

    async def _add(
        self, file: "_FileReader", manifest: ExportManifest, source: InstanceId, name: str | None
    ) -> SnapshotRecord:
        site, capture = self._site, CaptureId(mint_id())
        holder = f"import {capture}"
        with ExitStack() as stack:
            disk = stack.enter_context(
                site.layers.draft(manifest.disk.size_bytes, site.disk_form(manifest.spec))
            )
            memory: Draft | None = None
            if manifest.memory is not None:
                stack.callback(site.captures.release, capture, holder)
                draft = site.captures.draft(capture, manifest.memory.size_bytes, holder)
                memory = stack.enter_context(draft)
            await _fill(file, manifest, disk, memory)
            if memory is not None:
                await memory.commit()
            self._image(manifest.spec)  # From here on to the record nobody else has a turn.
            site.layers.adopt(disk)
            stack.callback(site.layers.release, disk.id)
            record = SnapshotRecord(
                id=SnapshotId(mint_id()),
                name=name,
                kind=manifest.kind,
                source=source,
                source_name=manifest.source_name,
                spec=manifest.spec,
                point=RestorePoint(disk.id, None if memory is None else capture),
                created_at=manifest.created_at,
                memory_bytes=0 if memory is None else site.captures.manifest(capture).resident_bytes,
                disk_bytes=site.layers.disk_bytes(disk.id),
                tags=dict(manifest.tags),
            )
            self._catalog.add(record)
            return record

    def _image(self, spec: InstanceSpec) -> Image:
        """Return the image of a snapshot.

        Raises:
            ImageNotFound, BadExport
        """
        try:
            return self._site.images.resolve(spec.image_digest)
        except ImageNotFound as error:
            try:
                reference = parse_reference(spec.image)
            except InvalidReference:
                raise BadExport("the manifest of the exported snapshot is wrong: spec.image") from error
            pinned = f"{reference.registry}/{reference.repository}@{spec.image_digest}"
            raise ImageNotFound(
                f"the image of the snapshot, {reference.display}, is not here with the digest"
                f" {spec.image_digest}",
                remedy=f"get it first: ramet pull {pinned}",
                image=spec.image,
                digest=spec.image_digest,
            ) from error


class _FileReader:
    """The entries of a file, one after the other, each checked to be the one that is due."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = bytearray()
        self._sums: dict[str, str] = {}

    async def read_manifest(self) -> ExportManifest:
        """Read the first entry.

        Raises:
            BadExport
        """
        header = await self._take(BLOCK_BYTES)
        try:
            size_bytes = int(header[124:135], 8)  # POSIX.1-2001, ustar.
        except ValueError:
            size_bytes = -1
        if not 0 <= size_bytes <= MANIFEST_BYTES_MAX or header != entry_header(MANIFEST, size_bytes):
            raise BadExport(
                "this is no exported snapshot", remedy="make one: ramet snapshot export NAME FILE"
            )
        text = await self._take(size_bytes)
        await self._expect(padding(size_bytes))
        self._sums[MANIFEST] = hashlib.sha256(text).hexdigest()
        return read_manifest(text)

    async def read_part(self, name: str, packed_bytes: int, part: PartReader) -> None:
        """Read the next entry, which is `name`, into `part`.

        Raises:
            BadExport
            RametError: of whom `part` writes to.
        """
        await self._expect(entry_header(name, packed_bytes))
        left_bytes = packed_bytes
        while left_bytes:
            slab = await self._take(min(left_bytes, SLAB_BYTES))
            await to_thread.run_sync(part.feed, slab)
            left_bytes -= len(slab)
        self._sums[name] = await to_thread.run_sync(part.finish)
        await self._expect(padding(packed_bytes))

    async def finish(self) -> None:
        """Check all that was read, and that nothing follows.

        Raises:
            BadExport
        """
        text = checksums(self._sums)
        await self._expect(entry_header(CHECKSUMS, len(text)) + text + padding(len(text)) + END)
        if self._buffer or await self._next():
            raise BadExport("something follows the end of the exported snapshot")

    async def _expect(self, data: bytes) -> None:
        if await self._take(len(data)) != data:
            raise BadExport("the exported snapshot is damaged")

    async def _take(self, size_bytes: int) -> bytes:
        while len(self._buffer) < size_bytes:
            chunk = await self._next()
            if not chunk:
                raise BadExport("the exported snapshot is cut off")
            self._buffer += chunk
        taken = bytes(memoryview(self._buffer)[:size_bytes])
        del self._buffer[:size_bytes]
        return taken

    async def _next(self) -> bytes:
        """Return what comes next, nothing at the end."""
        async for chunk in self._chunks:
            if chunk:
                return chunk
        return b""


async def _fill(file: _FileReader, manifest: ExportManifest, disk: LayerDraft, memory: Draft | None) -> None:
    """Read all parts to where they belong; durable but for the memory."""
    places: dict[str, tuple[int, _Write]] = {"disk": (CLUSTER_BYTES, disk.write)}
    if memory is not None:
        draft, capture = memory, memory.capture
        places["memory"] = (PAGE_BYTES, lambda at, data: draft.write(capture.memory, at, data))
        places["devices"] = (PAGE_BYTES, lambda at, data: draft.write(capture.devices, at, data))
        capture.format = manifest.format
        assert manifest.devices is not None, "who has memory has devices"
        os.ftruncate(capture.devices.fd, manifest.devices.size_bytes)
    for name, head in manifest.parts().items():
        block_bytes, write = places[name]
        part = PartReader(name, head.size_bytes, block_bytes, write)
        await file.read_part(name, head.packed_bytes, part)
    await file.finish()
    await to_thread.run_sync(disk.finish)


def _describe(
    record: SnapshotRecord,
    disk_bytes: int,
    capture: Capture | None,
    rootfs: Path | None,
    sources: Mapping[str, Runs],
) -> ExportManifest:
    """Return the manifest of a snapshot. Reads the root disk of one with memory."""
    sizes = {"disk": disk_bytes}
    if capture is not None:
        sizes |= {"memory": capture.memory.size_bytes, "devices": capture.devices.size_bytes}
    try:
        heads = {name: head_of(size_bytes, sources[name]()) for name, size_bytes in sizes.items()}
        rootfs_sha256 = None if rootfs is None else _hash(rootfs)
    except OSError as error:
        raise _unreadable(error) from error
    except ValueError as error:
        raise LayerBroken(f"the disk of the snapshot is damaged: {error}") from error
    return ExportManifest(
        schema=SCHEMA,
        name=record.name,
        kind=record.kind,
        source=record.source,
        source_name=record.source_name,
        spec=record.spec,
        created_at=record.created_at,
        tags=record.tags,
        format=None if capture is None else capture.format,
        rootfs_sha256=rootfs_sha256,
        disk=heads["disk"],
        memory=heads.get("memory"),
        devices=heads.get("devices"),
    )


def _sources_of(capture: Capture) -> dict[str, Runs]:
    try:
        return {"memory": runs_of_memory(capture), "devices": runs_of(capture.devices)}
    except OSError as error:
        raise _unreadable(error) from error


def _unreadable(error: OSError) -> CaptureBroken:
    return CaptureBroken(f"the snapshot cannot be read: {error.strerror}")


async def _in_threads(slabs: Iterator[bytes]) -> AsyncIterator[bytes]:
    try:
        while slab := await to_thread.run_sync(next, slabs, b""):
            yield slab
    except OSError as error:
        raise _unreadable(error) from error
    except ValueError as error:
        raise LayerBroken(f"the disk of the snapshot is damaged: {error}") from error


async def _sha256(rootfs: Path, manifest: ExportManifest) -> str | None:
    """Return the checksum of a root disk, where the manifest has one to compare it with."""
    if manifest.rootfs_sha256 is None:
        return None
    try:
        return await to_thread.run_sync(_hash, rootfs)
    except OSError as error:
        raise CaptureBroken(f"the root disk of the image cannot be read: {error.strerror}") from error


def _hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
