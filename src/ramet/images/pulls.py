"""Pulls: from a name asked for to an image in the catalog, shared by all who ask meanwhile.

A pull is written down before its first request and forgotten after its image has its name, so one that
dies with the daemon goes on with the next. Its credentials are not written down; such a pull ends as
failed and must be asked for again. Nothing of an image is visible before all of it is.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import structlog
from anyio.abc import TaskGroup, TaskStatus

from ramet.core.errors import Broken, RametError
from ramet.images import steps
from ramet.images.convert import ImportProgress, Phase
from ramet.images.documents import Descriptor, Platform
from ramet.images.errors import (
    DigestMismatch,
    InvalidReference,
    LayerCorrupt,
    PullCancelled,
    PullInProgress,
    PullInterrupted,
    TooManyPulls,
)
from ramet.images.limits import ImageLimits
from ramet.images.offload import run_stoppable
from ramet.images.pull_records import PullRecord, PullRecords
from ramet.images.quota import StorageQuota
from ramet.images.record import Image
from ramet.images.reference import Digest, Reference, parse_reference
from ramet.images.registry.cache import BlobCache
from ramet.images.registry.client import Registries
from ramet.images.registry.config import Credentials, RegistryConfig
from ramet.images.registry.download import download
from ramet.images.registry.remote import RemoteImage
from ramet.images.source import Selection
from ramet.images.steps import PullStep

if TYPE_CHECKING:
    from ramet.images.catalog import Catalog

FAILED_COUNT_MAX: Final = 64  # Failures remembered, for those who ask later.
PROGRESS_INTERVAL_S: Final = 0.1
PULL_COUNT_MAX: Final = 256  # Waiting or under way.

_log = structlog.get_logger(__name__)


class PullStatus(StrEnum):
    """Where a pull is. A failed one has its error; a ready one is an image."""

    PENDING = "pending"
    PULLING = "pulling"
    CONVERTING = "converting"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PullView:
    """One pull as it is now.

    Attributes:
        digest: of the manifest; None until the registry has told it.
        queue_position: how many must end before it begins, plus one; None once it has begun.
        layer_count: and the other counts: 0 until the registry has told them.
        done_bytes: of the layers as stored in the registry.
    """

    reference: Reference
    platform: Platform
    status: PullStatus
    digest: Digest | None
    queue_position: int | None
    error: RametError | None
    created_at: datetime
    labels: Mapping[str, str]
    layer_count: int
    layers_done: int
    total_bytes: int
    done_bytes: int


@dataclass(eq=False)
class _Pull:
    """One pull; only its own task changes it, until it is done."""

    record: PullRecord
    credentials: Credentials | None
    status: PullStatus = PullStatus.PENDING
    selection: Selection | None = None
    error: RametError | None = None
    image: Image | None = None
    waits_for_slot: bool = False
    done_bytes: dict[Digest, int] = field(default_factory=dict)
    resolved: anyio.Event = field(default_factory=anyio.Event)
    ended: anyio.Event = field(default_factory=anyio.Event)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    @property
    def layers(self) -> dict[Digest, Descriptor]:
        """The layers, each once, whether or not the image has one twice."""
        if self.selection is None:
            return {}
        return {layer.digest: layer for layer in self.selection.manifest.layers}

    def has_digest(self, digest: Digest) -> bool:
        found = self.selection
        return found is not None and (digest == found.digest or digest in found.indexes)

    def end(self, error: RametError | None) -> None:
        self.status = PullStatus.READY if error is None else PullStatus.FAILED
        self.error = error
        self.credentials = None
        self.resolved.set()
        self.ended.set()


class Pulls:
    """All pulls of one catalog. `open` comes first, then `run`, within which all others may be called.

    Args:
        folder: of the catalog.
        platform: of images whose pull names none.
        quota: of images and layers together.
    """

    def __init__(
        self,
        catalog: "Catalog",
        folder: Path,
        limits: ImageLimits,
        config: RegistryConfig,
        platform: Platform,
        quota: StorageQuota,
    ) -> None:
        self._catalog = catalog
        self._limits = limits
        self._config = config
        self._platform = platform
        self._records = PullRecords(folder / "pulls", folder / "tmp")
        self._cache = BlobCache(folder / "blobs", config.cache_bytes_max, limits.free_bytes_min, quota)
        self._left: list[PullRecord] = []
        self._pulls: dict[tuple[str, str], _Pull] = {}
        self._slots = anyio.Semaphore(config.pull_count_max)
        self._group: TaskGroup | None = None
        self._registries: Registries | None = None

    def open(self) -> None:
        """Read what another daemon left undone. Blocks.

        Raises:
            CatalogCorrupt: a record cannot be read.
        """
        self._cache.open()
        self._left = self._records.load()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Carry pulls out, those first that were left undone; until cancelled, which leaves them undone."""
        self._registries = Registries(self._config)
        try:
            async with anyio.create_task_group() as group:
                self._group = group
                for record in self._left:
                    self._resume(record)
                self._left.clear()
                task_status.started()
                await anyio.sleep_forever()
        finally:
            self._group = None
            with anyio.CancelScope(shield=True):
                await self._registries.aclose()

    async def start(
        self,
        reference: Reference,
        *,
        platform: Platform | None = None,
        credentials: Credentials | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> PullView:
        """Begin to pull, or join who does, and return once the registry has told the digest.

        Args:
            credentials: for exactly the registry of `reference`; None takes Docker's.
            labels: key-value pairs for the name.

        Raises:
            PullInProgress: it is being pulled with other credentials.
            TooManyPulls: see there.
            RametError: why the registry's image cannot be had, as `RemoteImage.resolve`.
        """
        pull = self._begin(reference, platform or self._platform, credentials, labels)
        await pull.resolved.wait()
        if pull.selection is not None and self._catalog.has(pull.selection.digest):
            await pull.ended.wait()  # It only gets its name.
        if pull.error is not None and pull.selection is None:
            self._drop(pull)
            raise pull.error
        return self._view(pull)

    async def fetch(
        self,
        reference: Reference,
        *,
        platform: Platform | None = None,
        credentials: Credentials | None = None,
        labels: Mapping[str, str] | None = None,
        progress: Callable[[PullView], None] | None = None,
    ) -> Image:
        """Pull, or join who does, and return the image; a caller who is cancelled does not end the pull.

        Args:
            progress: called now and then; must not raise.

        Raises:
            RametError: as `start`, or why it failed later.
        """
        pull = self._begin(reference, platform or self._platform, credentials, labels)
        while not pull.ended.is_set():
            with anyio.move_on_after(PROGRESS_INTERVAL_S if progress is not None else None):
                await pull.ended.wait()
            if progress is not None:
                progress(self._view(pull))
        if pull.error is not None:
            raise pull.error
        assert pull.image is not None
        return pull.image

    def find(self, ref: str) -> PullView | None:
        """Return the pull, also a failed one, of a name or digest."""
        found = self._find(ref)
        return None if found is None else self._view(found)

    def list(self) -> "list[PullView]":
        """Return all pulls that have not become images, oldest first."""
        return [self._view(pull) for pull in self._pulls.values()]

    async def cancel(self, ref: str) -> bool:
        """End the pull of a name or digest, or forget that it failed; return whether there was one."""
        pull = self._find(ref)
        if pull is None:
            return False
        pull.scope.cancel()
        await pull.ended.wait()
        self._drop(pull)
        return True

    def make_room(self, image_bytes: int, made_of: Collection[Digest] = ()) -> None:
        """Make sure that an image fits beside the layers of other pulls, see `BlobCache.make_room`.

        Raises:
            ImageQuotaReached: it does not.
        """
        self._cache.make_room(image_bytes, made_of)

    def collect_layers(self, before_s: float) -> int:
        """Let go of downloaded layers that no pull uses, see `BlobCache.collect`."""
        return self._cache.collect(before_s)

    def wants(self, digest: Digest) -> bool:
        """Tell whether a pull is under way that makes, or is about to name, the image of this manifest."""
        return any(pull.has_digest(digest) for pull in self._pulls.values() if not pull.ended.is_set())

    # One pull

    def _begin(
        self,
        reference: Reference,
        platform: Platform,
        credentials: Credentials | None,
        labels: Mapping[str, str] | None,
    ) -> _Pull:
        assert self._group is not None, "run() runs"
        key = (str(reference), str(platform))
        pull = self._pulls.get(key)
        if pull is not None and not pull.ended.is_set():
            if pull.credentials != (credentials or None):
                raise PullInProgress(
                    f"{reference} is being pulled with other credentials",
                    remedy="wait until that pull has ended, then try again",
                    name=str(reference),
                )
            return pull
        if sum(not other.ended.is_set() for other in self._pulls.values()) >= PULL_COUNT_MAX:
            raise TooManyPulls(f"{PULL_COUNT_MAX} images are being pulled", remedy="try again later")
        record = PullRecord(reference, platform, labels, bool(credentials), datetime.now(UTC))
        pull = _Pull(record, credentials or None)
        self._pulls.pop(key, None)
        self._pulls[key] = pull
        self._group.start_soon(self._work, pull)
        return pull

    def _resume(self, record: PullRecord) -> None:
        assert self._group is not None
        pull = _Pull(record, None)
        self._pulls[(str(record.reference), str(record.platform))] = pull
        if record.had_credentials:
            self._records.remove(record)
            pull.end(
                PullInterrupted(
                    f"The pull of {record.reference} ended with the daemon, and its credentials with it",
                    remedy="pull it again with credentials",
                )
            )
            return
        self._group.start_soon(self._work, pull)

    async def _work(self, pull: _Pull) -> None:
        """Carry one pull out; the edge at which its failure is logged."""
        error: RametError | None = None
        with pull.scope:
            try:
                await run_stoppable(lambda _: self._records.save(pull.record))
                steps.reached(PullStep.RECORDED)
                await self._perform(pull)
            except RametError as failure:
                error = failure
            except Exception as failure:
                _log.exception("pull_failed_unexpectedly", image=str(pull.record.reference))
                error = Broken(f"The pull failed unexpectedly: {type(failure).__name__}")
        if pull.scope.cancelled_caught:
            error = PullCancelled(f"The pull of {pull.record.reference} was cancelled by its removal")
        with anyio.CancelScope(shield=True):
            await run_stoppable(lambda _: self._records.remove(pull.record))
        steps.reached(PullStep.FORGOTTEN)
        if error is not None:
            _log.warning("pull_failed", image=str(pull.record.reference), code=error.code, error=str(error))
        pull.end(error)
        if error is None:
            self._drop(pull)
        self._forget_old_failures()

    async def _perform(self, pull: _Pull) -> None:
        assert self._registries is not None
        reference = pull.record.reference
        repositories = await self._registries.open(reference, pull.credentials)
        remote = RemoteImage(reference, repositories, self._cache, self._limits)
        selection = await remote.resolve(pull.record.platform)
        pull.selection = selection
        steps.reached(PullStep.RESOLVED)
        pull.resolved.set()
        while not self._catalog.has(selection.digest):
            first = self._first_of(selection.digest)
            if first is not pull:
                await first.ended.wait()  # Then there is the image, or the next one's turn has come.
                continue
            async with self._cache.holding(pull.layers):
                await self._fetch_layers(pull, remote)
                await self._import(pull, remote)
            return
        await self._import(pull, remote)

    async def _fetch_layers(self, pull: _Pull, remote: RemoteImage) -> None:
        pull.waits_for_slot = self._slots.value == 0
        try:
            async with self._slots:
                pull.waits_for_slot = False
                pull.status = PullStatus.PULLING
                with self._cache.room_for(pull.layers):
                    await self._fetch_side_by_side(pull, remote)
        finally:
            pull.waits_for_slot = False
        steps.reached(PullStep.LAYERS_FETCHED)

    async def _fetch_side_by_side(self, pull: _Pull, remote: RemoteImage) -> None:
        slots = anyio.Semaphore(self._config.layer_count_max)
        errors: list[RametError] = []

        async def fetch(layer: Descriptor) -> None:
            def on_bytes(done_bytes: int) -> None:
                pull.done_bytes[layer.digest] = done_bytes

            async with slots:
                try:
                    await download(remote.repositories, layer, self._cache, on_bytes)
                    steps.reached(PullStep.LAYER_FETCHED)
                except RametError as error:
                    errors.append(error)
                    group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            for layer in pull.layers.values():
                group.start_soon(fetch, layer)
        if errors:
            raise errors[0]

    async def _import(self, pull: _Pull, remote: RemoteImage) -> None:
        def on_progress(progress: ImportProgress) -> None:
            if progress.phase is not Phase.READY:
                pull.status = PullStatus.CONVERTING

        try:
            pull.image = await self._catalog.import_source(
                remote,
                wanted=pull.record.reference,
                platform=pull.record.platform,
                labels=pull.record.labels,
                fetched=pull.layers,
                progress=on_progress,
            )
        except (DigestMismatch, LayerCorrupt):
            self._cache.doubt(pull.layers)
            raise
        steps.reached(PullStep.NAMED)

    # All pulls

    def _first_of(self, digest: Digest) -> _Pull:
        """Return the pull under way that does the work for all of this image."""
        return next(
            pull
            for pull in self._pulls.values()
            if not pull.ended.is_set() and pull.selection is not None and pull.selection.digest == digest
        )

    def _find(self, ref: str) -> _Pull | None:
        try:
            reference = parse_reference(ref)
        except InvalidReference:
            return next((pull for pull in self._newest() if pull.has_digest(Digest(ref))), None)
        named = (pull for pull in self._newest() if str(pull.record.reference) == str(reference))
        found = next(named, None)
        if found is not None or reference.digest is None:
            return found
        digest = reference.digest
        return next((pull for pull in self._newest() if pull.has_digest(digest)), None)

    def _newest(self) -> Iterable[_Pull]:
        return reversed(self._pulls.values())

    def _drop(self, pull: _Pull) -> None:
        key = (str(pull.record.reference), str(pull.record.platform))
        if self._pulls.get(key) is pull:
            del self._pulls[key]

    def _forget_old_failures(self) -> None:
        failed = [pull for pull in self._pulls.values() if pull.ended.is_set()]
        for pull in failed[: max(0, len(failed) - FAILED_COUNT_MAX)]:
            self._drop(pull)

    def _view(self, pull: _Pull) -> PullView:
        waiting = [other for other in self._pulls.values() if other.waits_for_slot]
        layers = pull.layers
        return PullView(
            reference=pull.record.reference,
            platform=pull.record.platform,
            status=pull.status,
            digest=None if pull.selection is None else pull.selection.digest,
            queue_position=waiting.index(pull) + 1 if pull in waiting else None,
            error=pull.error,
            created_at=pull.record.created_at,
            labels=pull.record.labels or {},
            layer_count=len(layers),
            layers_done=sum(pull.done_bytes.get(key) == layer.size_bytes for key, layer in layers.items()),
            total_bytes=sum(layer.size_bytes for layer in layers.values()),
            done_bytes=sum(pull.done_bytes.values()),
        )
