"""Removes images that nobody has used for long, of the repositories that are listed; and layers nobody needs.

An image is used as long as an instance or a snapshot has it. Since when nobody does is written down before
anything goes by it, so that a restart neither forgets that time nor begins it anew; and whoever uses an image
again, even for a moment, ends it. Whether one is used is asked once more when it would go, with nobody else's
turn in between.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol

import anyio
import structlog
from anyio import to_thread

from ramet.core.errors import RametError
from ramet.core.spec import InstanceRecord

SWEEP_INTERVAL_S: Final = 60.0
ANY: Final = "*"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RetentionConfig:
    """Which images go when.

    Attributes:
        unused_for_s: how long nobody has used one that goes.
        allowed: what may go: repositories, "*" for all, or "registry/part/*" for all that begin so.
    """

    unused_for_s: float
    allowed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """How often layers are looked at, and for how long nobody has used those that go."""

    interval_s: float
    age_s_min: float


class Kept(Protocol):
    """An image: `ramet.images.record.Image`."""

    @property
    def digest(self) -> str: ...
    @property
    def tags(self) -> tuple[str, ...]: ...
    @property
    def created_at(self) -> datetime: ...


class Images(Protocol):
    """All images: `ramet.images.catalog.Catalog`."""

    def list(self) -> Sequence[Kept]: ...
    async def discard(self, digest: str, *, is_wanted: Callable[[], bool]) -> bool: ...


class Times(Protocol):
    """Where it is written down: `ramet.store.unused.UnusedFile`."""

    def load(self) -> dict[str, float]: ...
    def save(self, since: Mapping[str, float]) -> None: ...
    def forget(self) -> None: ...


class Layers(Protocol):
    """The downloaded layers: `ramet.images.pulls.Pulls`."""

    def collect_layers(self, before_s: float) -> int: ...


def may_go(tags: Iterable[str], allowed: Collection[str]) -> bool:
    """Tell whether an image with these names may ever go: all of its repositories are listed.

    One without a name has no repository, and may go where all may.
    """
    names = tuple(tags)
    if ANY in allowed:
        return True
    return bool(names) and all(_is_listed(_repository(name), allowed) for name in names)


def unused_since(
    images: Iterable[Kept], used: Collection[str], before: Mapping[str, float], now: float
) -> dict[str, float]:
    """Return since when each unused image is, by digest; `before` is what was known.

    Never since before it was made or in the future, whatever the clock was set to.
    """
    return {
        image.digest: min(now, max(before.get(image.digest, now), image.created_at.timestamp()))
        for image in images
        if image.digest not in used
    }


class RetentionKeeper:
    """Removes what its config says. `now` returns Unix seconds; `used` the digests that somebody has.

    Without a config it removes nothing, and what was written down is forgotten: it would not be true later.
    """

    def __init__(
        self,
        images: Images,
        times: Times,
        used: Callable[[], Collection[str]],
        config: RetentionConfig | None,
        now: Callable[[], float] = time.time,
        interval_s: float = SWEEP_INTERVAL_S,
    ) -> None:
        self._images, self._times, self._used, self._config = images, times, used, config
        self._now, self._interval_s = now, interval_s
        self._since: dict[str, float] = {}
        self._written: dict[str, float] | None = None
        self._was_used = anyio.Event()

    def see(self, record: InstanceRecord) -> None:
        """Take note of what an instance is now: it uses its image. Never fails."""
        self.see_used(record.spec.image_digest)

    def see_used(self, digest: str) -> None:
        """Take note that somebody uses an image. Never fails."""
        if self._since.pop(digest, None) is not None:
            self._was_used.set()  # To be written down soon.

    async def run(self, found: Iterable[InstanceRecord] = ()) -> None:
        """Look at all images now and then, until cancelled. `found`: the instances there are already."""
        if self._config is None:
            try:
                self._times.forget()
            except RametError as error:
                log.warning("unused_images_not_forgotten", error=str(error))
            return
        self._since = self._times.load()
        self._written = dict(self._since)
        for record in found:
            self.see(record)
        while True:
            self._was_used = anyio.Event()
            await self.sweep(self._config)
            with anyio.move_on_after(self._interval_s):
                await self._was_used.wait()

    async def sweep(self, config: RetentionConfig) -> None:
        """Look at all images once; those whose time is up go."""
        images = self._images.list()
        self._since = unused_since(images, self._used(), self._since, self._now())
        try:
            await self._write()
        except RametError as error:
            # What is not written down is not gone by.
            log.warning("unused_images_not_written", error=str(error))
            return
        for image in images:
            if may_go(image.tags, config.allowed) and not self._is_wanted(image.digest, config):
                await self._remove(image, config)

    async def _remove(self, image: Kept, config: RetentionConfig) -> None:
        try:
            is_gone = await self._images.discard(
                image.digest, is_wanted=lambda: self._is_wanted(image.digest, config)
            )
        except RametError as error:
            log.warning("unused_image_not_removed", image=image.digest, error=str(error))
            return
        if is_gone:
            log.info("unused_image_removed", image=image.digest, names=image.tags)

    def _is_wanted(self, digest: str, config: RetentionConfig) -> bool:
        since = self._since.get(digest)
        return since is None or since + config.unused_for_s > self._now() or digest in self._used()

    async def _write(self) -> None:
        since = dict(self._since)  # Who is used meanwhile is written down with the next sweep, which is soon.
        if since != self._written:
            await to_thread.run_sync(self._times.save, since)  # A busy disk may take its time.
            self._written = since


class LayerKeeper:
    """Lets go of downloaded layers that no pull has used for so long; without a config, of none."""

    def __init__(
        self, layers: Layers, config: LayerConfig | None, now: Callable[[], float] = time.time
    ) -> None:
        self._layers, self._config, self._now = layers, config, now

    async def run(self) -> None:
        """Look at them now and then, until cancelled; not at once, as a pull may want to go on with some."""
        if self._config is None:
            return
        while True:
            await anyio.sleep(self._config.interval_s)
            self.sweep(self._config)

    def sweep(self, config: LayerConfig) -> None:
        """Look at all layers once."""
        try:
            count = self._layers.collect_layers(self._now() - config.age_s_min)
        except RametError as error:
            log.warning("unused_layers_not_removed", error=str(error))
            return
        if count:
            log.info("unused_layers_removed", count=count)


def _repository(name: str) -> str:
    """Return "registry/repository" of a full reference, without tag and digest."""
    name = name.partition("@")[0]
    head, _, last = name.rpartition("/")
    return f"{head}/{last.partition(':')[0]}"


def _is_listed(repository: str, allowed: Collection[str]) -> bool:
    return any(
        repository.startswith(each[:-1]) if each.endswith("/*") else repository == each for each in allowed
    )
