"""The images of this host: content by digest, names beside it.

    images/
      content/sha256-<hex>/rootfs.erofs, image.json
      tags.json
      tmp/                     half-made things; emptied on open

An image is made in `tmp/` and appears in `content/` by one rename, so it is either whole or not there. It is
removed by the opposite rename. What the file of tags says about absent content is void.
"""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import anyio

from ramet.core.ids import mint_id
from ramet.images import steps
from ramet.images.config import ImageConfig
from ramet.images.convert import ImportProgress, Phase, open_source, unpack
from ramet.images.documents import LINUX_AMD64, Platform
from ramet.images.errors import (
    AmbiguousDigest,
    CatalogCorrupt,
    ImageInUse,
    ImageNotFound,
    InvalidReference,
    StorageFull,
    storage_error,
)
from ramet.images.limits import ImageLimits
from ramet.images.offload import run_stoppable
from ramet.images.pulls import Pulls
from ramet.images.quota import StorageQuota
from ramet.images.record import (
    Content,
    Image,
    Names,
    content_to_bytes,
    load_content,
    load_names,
    save_names,
    sync,
    write_synced,
)
from ramet.images.reference import Digest, Reference, parse_reference
from ramet.images.registry.config import RegistryConfig
from ramet.images.rootfs import ErofsFeatures, detect_features, make_rootfs
from ramet.images.source import Selection, Source, select
from ramet.images.steps import PullStep
from ramet.images.unpack import Unpacked

CONVERSION_COUNT_MAX: Final = 2  # At once; each is one busy thread or mkfs.erofs.
DIGEST_PREFIX_LENGTH_MIN: Final = 12  # What docker prints as an image's id.
IMAGE_FILE: Final = "image.json"
ROOTFS_FILE: Final = "rootfs.erofs"

_RESULT: Final = "content"
_PREFIX: Final = re.compile(rf"(?:sha256:|sha512:)?[0-9a-f]{{{DIGEST_PREFIX_LENGTH_MIN},128}}")


class Catalog:
    """The images in one folder. One process at a time; all calls from one event loop.

    Args:
        folder: made if it is missing; on a file system with owners, devices and xattrs.
        limits: bounds on each image.
        platform: of the images to choose.
        registries: how images are pulled.

    Attributes:
        pulls: what is pulled into it; somebody runs `pulls.run()`.
    """

    def __init__(
        self,
        folder: Path,
        limits: ImageLimits,
        *,
        platform: Platform = LINUX_AMD64,
        registries: RegistryConfig | None = None,
    ) -> None:
        self._folder = folder
        self._limits = limits
        self._platform = platform
        self._contents: dict[Digest, Content] = {}
        self._names = Names()
        self._features: ErofsFeatures | None = None
        self._busy: dict[Digest, tuple[anyio.Lock, int]] = {}
        self._conversions = anyio.Semaphore(CONVERSION_COUNT_MAX)
        self._names_lock = anyio.Lock()
        self._on_use: Callable[[str], None] = lambda _: None
        quota = StorageQuota(limits.storage_bytes_max, self._image_bytes)
        self.pulls = Pulls(self, folder, limits, registries or RegistryConfig(), platform, quota)

    async def open(self) -> None:
        """Read what is there, and remove what an interrupted import or removal left behind.

        Raises:
            CatalogCorrupt: a record cannot be read; the text says which.
        """
        self._contents, self._names = await run_stoppable(lambda _: self._load())

    async def import_path(
        self,
        path: Path,
        *,
        name: str | None = None,
        progress: Callable[[ImportProgress], None] | None = None,
    ) -> Image:
        """Add the image in an OCI layout folder, OCI archive or docker archive, and return it.

        An image that is here already only gets its name. Cancelled or failed, it leaves nothing.

        Args:
            path: the folder or file; an archive may be compressed.
            name: chooses among several images, and else names the one; without it the image's own
                names are taken, or the name of the file.
            progress: called on the event loop; must not raise.

        Raises:
            InvalidReference: `name` is none.
            ImageSourceNotFound, NotAnImage, AmbiguousImage, NoMatchingPlatform, UnsupportedMediaType,
            InvalidManifest, BlobMissing, DigestMismatch, LayerCorrupt, UnsafePath, ImageTooLarge,
            StorageFull, ImageQuotaReached, ConversionFailed: see there.
        """
        wanted = parse_reference(name) if name is not None else None
        async with self._scratch() as scratch:
            source = await run_stoppable(lambda check: open_source(path, scratch, self._limits, check))
            stem = path.resolve().name.partition(".")[0]
            return await self.import_source(source, wanted=wanted, stem=stem, progress=progress)

    async def import_source(
        self,
        source: Source,
        *,
        wanted: Reference | None,
        stem: str = "",
        platform: Platform | None = None,
        labels: Mapping[str, str] | None = None,
        fetched: Collection[Digest] = (),
        progress: Callable[[ImportProgress], None] | None = None,
    ) -> Image:
        """Add an image from `source`, as `import_path`.

        Args:
            stem: names the image where nothing else does.
            platform: of the image to choose, if not the catalog's.
            labels: key-value pairs of the name; None leaves those it has.
            fetched: layers that were downloaded for this alone.
        """
        chosen = platform or self._platform
        selection = await run_stoppable(lambda _: select(source, wanted, chosen, self._limits))
        names = _names(selection, wanted, stem)
        async with self._alone(selection.digest):
            if selection.digest not in self._contents:
                async with self._conversions:
                    await self._convert(source, selection, fetched, progress)

            def add(found: Names) -> None:
                found.tags.update(dict.fromkeys(names, selection.digest))
                found.pins.update(dict.fromkeys(selection.indexes, selection.digest))
                if labels is not None:
                    found.labels.update({name: dict(labels) for name in names})

            # A pull that is cancelled here is cancelled by the removal of its name. Content without one would
            # not go with it, and nobody would know what it is.
            self._on_use(selection.digest)
            with anyio.CancelScope(shield=True):
                await self._change_names(add)
            image = self._image(selection.digest, names[0] if names else None)
        if progress is not None:
            progress(_after(selection, Phase.READY))
        return image

    def has(self, digest: Digest) -> bool:
        """Tell whether the image with this manifest is here."""
        return digest in self._contents

    def resolve(self, ref: str) -> Image:
        """Return the image that `ref` names: a name, a digest, or 12 or more digits of one.

        Raises:
            ImageNotFound: there is none.
            AmbiguousDigest: the digits begin several digests.
            InvalidReference: `ref` can be no image's name.
        """
        digest, name = self._resolve(ref)
        return self._image(digest, name)

    def config_of(self, digest: str) -> ImageConfig:
        """Return the configuration of one image.

        Raises:
            ImageNotFound: there is none of this digest.
        """
        return self._content_of(digest).config

    def rootfs_of(self, digest: str) -> Path:
        """Return the root image of one image.

        Raises:
            ImageNotFound: there is none of this digest.
        """
        return self._place(self._content_of(digest).digest) / ROOTFS_FILE

    def list(self) -> "list[Image]":
        """Return all images, oldest first."""
        images = [self._image(digest, None) for digest in self._contents]
        return sorted(images, key=lambda image: (image.created_at, image.digest))

    async def tag(self, ref: str, name: str) -> Image:
        """Give the image `ref` the further name `name`, and return it under that name.

        Raises:
            ImageNotFound, AmbiguousDigest, InvalidReference: as `resolve`; also if `name` holds a digest.
        """
        digest, _ = self._resolve(ref)
        target = parse_reference(name)
        if target.digest is not None:
            raise InvalidReference(f"{name[:200]!r} names a digest and cannot be a tag")
        async with self._alone(digest):
            if digest not in self._contents:
                raise _not_found(ref)
            self._on_use(digest)
            await self._change_names(lambda found: found.tags.update({target.name: digest}))
            return self._image(digest, target.name)

    async def remove(self, ref: str, *, in_use: Callable[[Digest], bool]) -> None:
        """Remove the name `ref`, and with an image's last name its content; a digest removes all at once.

        A pull of `ref` ends; one that failed is forgotten.

        Args:
            in_use: tells whether an instance or snapshot needs the content; asked at the last moment.

        Raises:
            ImageInUse: the content would have to go and is needed.
            ImageNotFound, AmbiguousDigest, InvalidReference: as `resolve`.
        """
        was_pulled = await self.pulls.cancel(ref)
        try:
            digest, name = self._resolve(ref)
        except ImageNotFound:
            if was_pulled:
                return
            raise
        async with self._alone(digest):
            if digest not in self._contents or (name is not None and self._names.tags.get(name) != digest):
                raise _not_found(ref)
            kept = [tag for tag in self._tags_of(digest) if name is not None and tag != name]
            if kept:

                def take(found: Names) -> None:
                    assert name is not None
                    del found.tags[name]
                    found.labels.pop(name, None)

                await self._change_names(take)
                return
            if in_use(digest):
                raise ImageInUse(
                    f"The image {ref} is used by an instance or snapshot",
                    remedy="remove those first",
                    digest=digest,
                )
            await self._bury(digest)

    async def discard(self, digest: str, *, is_wanted: Callable[[], bool]) -> bool:
        """Remove an image with all of its names, and return whether it went; not one that a pull is about.

        Args:
            is_wanted: tells whether it is to stay; asked at the last moment.

        Raises:
            StorageFull, ConversionFailed: it, or its names, cannot be removed from the disk.
        """
        found = Digest(digest)
        async with self._alone(found):
            if found not in self._contents or self.pulls.wants(found) or is_wanted():
                return False
            await self._bury(found)
            return True

    def watch(self, on_use: Callable[[str], None]) -> None:
        """Have it be called with the digest of each image that is asked for or gets a name."""
        self._on_use = on_use

    async def _bury(self, digest: Digest) -> None:
        """Remove the content of an image that is ours alone; no await before it is gone for all others."""
        grave = self._tmp / mint_id()
        with _storage_errors():
            self._place(digest).rename(grave)
            del self._contents[digest]
            self._names = self._names.of(self._contents)
            # Before the names are written, which a full disk may refuse; they count for nothing now.
            await run_stoppable(lambda _: shutil.rmtree(grave))
        await self._change_names(lambda _: None)

    # Importing

    async def _convert(
        self,
        source: Source,
        selection: Selection,
        fetched: Collection[Digest],
        progress: Callable[[ImportProgress], None] | None,
    ) -> None:
        report = _on_loop(progress)
        self.pulls.make_room(1, fetched)  # Else it cannot fit, however small it turns out to be.
        if self._features is None:
            self._features = await detect_features()
        async with self._scratch() as scratch:
            with _storage_errors():
                content = await self._build(source, selection, scratch, self._features, report)
                # No await among these: what fits is there, and what is on disk is in memory, even if we are
                # cancelled.
                self.pulls.make_room(content.size_bytes, fetched)
                (scratch / _RESULT).rename(self._place(selection.digest))
                self._contents[selection.digest] = content
                with anyio.CancelScope(shield=True):  # As for its names: see `import_source`.
                    await run_stoppable(lambda _: sync(self._content))
                steps.reached(PullStep.PUBLISHED)

    async def _build(
        self,
        source: Source,
        selection: Selection,
        scratch: Path,
        features: ErofsFeatures,
        report: Callable[[ImportProgress], None],
    ) -> Content:
        """Make all of an image in `scratch`, durably."""
        staging, result = scratch / "staging", scratch / _RESULT
        staging.mkdir()
        staging.chmod(0o755)  # Of the image's root folder, unless a layer says otherwise.
        result.mkdir()
        unpacked: Unpacked = await run_stoppable(
            lambda check: unpack(source, selection, staging, self._limits, self._guarded(check), report)
        )
        steps.reached(PullStep.UNPACKED)
        report(_after(selection, Phase.CONVERTING))
        rootfs = result / ROOTFS_FILE
        await make_rootfs(staging, rootfs, selection.digest, unpacked.mtime_s_max, features)
        steps.reached(PullStep.CONVERTED)
        content = Content(
            digest=selection.digest,
            size_bytes=rootfs.stat().st_size,
            config=selection.document.config,
            created_at=datetime.now(UTC),
            layers=tuple(layer.digest for layer in selection.manifest.layers),
        )
        await run_stoppable(lambda _: _seal(result, content))
        steps.reached(PullStep.SEALED)
        return content

    def _guarded(self, check: Callable[[], None]) -> Callable[[], None]:
        """Return `check`, which also refuses to use up the disk's reserve."""

        def guarded() -> None:
            check()
            found = os.statvfs(self._folder)
            if found.f_bavail * found.f_frsize < self._limits.free_bytes_min:
                raise StorageFull(
                    f"The disk that holds the images has less than {self._limits.free_bytes_min} bytes left",
                    remedy="remove images with: ramet image rm NAME, or make room otherwise",
                )

        return guarded

    @asynccontextmanager
    async def _scratch(self) -> AsyncIterator[Path]:
        """A folder of our own in `tmp/`, which nobody but root can enter; gone afterwards."""
        folder = self._tmp / mint_id()
        with _storage_errors():
            folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            with anyio.CancelScope(shield=True):
                await run_stoppable(lambda _: shutil.rmtree(folder))

    @asynccontextmanager
    async def _alone(self, digest: Digest) -> AsyncIterator[None]:
        """Nobody else imports, tags or removes this image meanwhile."""
        lock, count = self._busy.get(digest, (anyio.Lock(), 0))
        self._busy[digest] = (lock, count + 1)
        try:
            async with lock:
                yield
        finally:
            _, count = self._busy.pop(digest)
            if count > 1:
                self._busy[digest] = (lock, count - 1)

    async def _change_names(self, change: Callable[[Names], None]) -> None:
        """Have `change` made to the names on disk, and then to those in memory; of what is here only.

        Raises:
            StorageFull, ConversionFailed: nothing has changed.
        """
        async with self._names_lock:
            names = self._names.of(self._contents)
            change(names)
            is_saved = False

            def save(_: Callable[[], None]) -> None:
                nonlocal is_saved
                with _storage_errors():
                    save_names(self._folder / "tags.json", names, self._tmp / mint_id())
                is_saved = True

            try:
                await run_stoppable(save)
            finally:
                if is_saved:  # Also if we were cancelled meanwhile.
                    self._names = names.of(self._contents)

    # Looking up

    def _resolve(self, ref: str) -> tuple[Digest, str | None]:
        """Return the digest, and the tag where `ref` is one."""
        try:
            reference = parse_reference(ref)
        except InvalidReference:
            reference = None
        if reference is not None and reference.digest is None and reference.name in self._names.tags:
            return self._names.tags[reference.name], reference.name
        if reference is not None and reference.digest is not None:
            digest = self._names.pins.get(reference.digest, reference.digest)
            if digest in self._contents:
                return digest, None
            raise _not_found(ref)
        if _PREFIX.fullmatch(ref) is not None:
            found = [
                digest
                for digest in self._contents
                if digest.startswith(ref) or (":" not in ref and digest.partition(":")[2].startswith(ref))
            ]
            if len(found) > 1:
                raise AmbiguousDigest(f"{ref} begins the digests of {len(found)} images", digests=found)
            if found:
                return found[0], None
        elif reference is None:
            parse_reference(ref)  # Raises; and says why better than we could.
        raise _not_found(ref)

    def _content_of(self, digest: str) -> Content:
        try:
            return self._contents[Digest(digest)]
        except KeyError:
            raise _not_found(digest) from None

    def _image_bytes(self) -> int:
        return sum(content.size_bytes for content in self._contents.values())

    def _image(self, digest: Digest, name: str | None) -> Image:
        content = self._contents[digest]
        tags = self._tags_of(digest)
        return Image(
            name=name or (tags[0] if tags else str(digest)),
            digest=digest,
            size_bytes=content.size_bytes,
            config=content.config,
            platform=content.config.platform,
            created_at=content.created_at,
            rootfs=self.rootfs_of(digest),
            tags=tags,
            labels={tag: self._names.labels[tag] for tag in tags if tag in self._names.labels},
        )

    def _tags_of(self, digest: Digest) -> tuple[str, ...]:
        return tuple(sorted(tag for tag, found in self._names.tags.items() if found == digest))

    # On disk

    @property
    def _tmp(self) -> Path:
        return self._folder / "tmp"

    @property
    def _content(self) -> Path:
        return self._folder / "content"

    def _place(self, digest: Digest) -> Path:
        return self._content / digest.replace(":", "-")

    def _load(self) -> tuple[dict[Digest, Content], Names]:
        self._content.mkdir(parents=True, exist_ok=True)
        self._tmp.mkdir(exist_ok=True)
        self._tmp.chmod(0o700)  # Staged files keep their setuid bits.
        for left in self._tmp.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()
        self.pulls.open()
        contents = {}
        for place in sorted(self._content.iterdir()):
            if not (place / IMAGE_FILE).exists():
                shutil.rmtree(place)
                continue
            content = load_content(place / IMAGE_FILE)
            if self._place(content.digest) != place:
                raise CatalogCorrupt(f"{place} holds {content.digest}", remedy=f"remove {place}")
            contents[content.digest] = content
        return contents, load_names(self._folder / "tags.json").of(contents)


def _names(selection: Selection, wanted: Reference | None, stem: str) -> tuple[str, ...]:
    if wanted is not None:
        return (wanted.name,) if wanted.tag is not None else ()
    if selection.names:
        return selection.names
    try:
        return (parse_reference(stem.lower()).name,)
    except InvalidReference as error:
        raise InvalidReference("The image has no name of its own", remedy="give it one: --name") from error


@contextmanager
def _storage_errors() -> Iterator[None]:
    """Turn what the kernel says about our folder into one of our errors."""
    try:
        yield
    except OSError as error:
        raise storage_error(error) from error


def _after(selection: Selection, phase: Phase) -> ImportProgress:
    layers = selection.manifest.layers
    total_bytes = sum(layer.size_bytes for layer in layers)
    return ImportProgress(phase, len(layers), len(layers), total_bytes, total_bytes)


def _on_loop(progress: Callable[[ImportProgress], None] | None) -> Callable[[ImportProgress], None]:
    """Return a function that any thread may call, and that calls `progress` on this event loop."""
    if progress is None:
        return lambda _: None
    loop = asyncio.get_running_loop()

    def report(value: ImportProgress) -> None:
        loop.call_soon_threadsafe(progress, value)

    return report


def _seal(result: Path, content: Content) -> None:
    sync(result / ROOTFS_FILE)
    os.chmod(result / ROOTFS_FILE, 0o444)
    write_synced(result / IMAGE_FILE, content_to_bytes(content))
    sync(result)


def _not_found(ref: str) -> ImageNotFound:
    return ImageNotFound(
        f"There is no image {ref[:200]!r}", remedy="ramet image list shows those here", ref=ref[:200]
    )
