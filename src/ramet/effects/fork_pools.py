"""Pools of berths, so that a burst finds its children's VMMs started.

A running source whose spec has a `fork_pool` gets that many berths. They belong to its next capture: their
VMMs map the memory file that it will fill, their disks stand on the layer that it will freeze. So a live
capture takes a pool's file over, whoever is forked with it takes a berth, and what is left over when all have
gone aboard is ended: nobody can ever be made of it. The pool is filled again when the burst is over. A
snapshot's berths map its stored memory instead, and any fork of it takes one, whenever.

Whatever else changes the source's disk (a sleep, a snapshot) makes the berths useless, too; a fork that finds
none, or a useless one, does without.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup

from ramet.core.errors import Broken, RametError
from ramet.core.ids import CaptureId, InstanceId, LayerId
from ramet.core.snapshot import SnapshotRecord
from ramet.core.spec import InstanceIdentity, InstanceRecord, State
from ramet.effects.awaken import waking_driver
from ramet.effects.berth import Berth, end_berth, reserve_berth, start_berth
from ramet.effects.site import Site
from ramet.instance.fleet_types import ForkPoolStatus
from ramet.snapshots.capture import open_memory_capture
from ramet.telemetry.metrics import BERTHS, BERTHS_WAITING
from ramet.vmm.port import Capture, LiveFork

RETRY_S: Final = 5.0
"""How soon what failed, making a berth or ending one, is tried again."""

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class _Generation:
    """The berths of one capture: one to come, or that of a snapshot.

    `chain` is what is below their disks. `claimed_count` children have taken a berth of it and are about to
    ask for the capture; they can as long as it `is_boarding`.
    """

    capture: Capture | None
    below: LayerId
    chain: tuple[tuple[Path, str], ...]
    waiting: list[Berth] = field(default_factory=list)
    claimed_count: int = 0
    is_boarding: bool = True


class ForkPools:
    """The pools of a site's running instances and snapshots, by their ids.

    Synchronous, but for `run` of each, a task of `group`.
    """

    def __init__(self, site: Site, group: TaskGroup) -> None:
        self._site, self._group = site, group
        self._pools: dict[str, _Pool] = {}
        self._claimed: dict[InstanceId, Berth] = {}

    def see(self, record: InstanceRecord) -> None:
        """Follow what has become of an instance."""
        pool = self._pools.get(record.id)
        if pool is None:
            driver = self._site.drivers.get(record.spec.hypervisor)
            if not record.spec.fork_pool or record.is_deleting or not isinstance(driver, LiveFork):
                return
            pool = self._pools[record.id] = _Pool(self._site, record, self._group, self._drop)
            self._group.start_soon(pool.run)
        pool.see(record)

    def see_snapshot(self, snapshot: SnapshotRecord, *, is_gone: bool = False) -> None:
        """Follow what has become of a snapshot."""
        wanted = 0 if is_gone else snapshot.fork_pool
        # Of a snapshot that is forked all is as of an instance that runs and whose disk never changes.
        identity = InstanceIdentity(InstanceId(snapshot.id), snapshot.id, None, "", snapshot.created_at)
        spec = replace(snapshot.spec, fork_pool=wanted)
        source = InstanceRecord(spec, identity, State.RUNNING, layer=snapshot.point.layer)
        pool = self._pools.get(snapshot.id)
        if pool is None:
            capture = snapshot.point.capture
            driver = self._site.drivers.get(snapshot.spec.hypervisor)
            if not wanted or capture is None or not isinstance(driver, LiveFork):
                return
            pool = self._pools[snapshot.id] = _StoredPool(
                self._site, source, self._group, self._drop, capture
            )
            self._group.start_soon(pool.run)
        pool.see(source)

    def claim(self, source: str, record: InstanceRecord) -> Berth | None:
        """Return a berth for `record`, about to be forked from `source`; None: there is none for it."""
        pool = self._pools.get(source)
        berth = None if pool is None else pool.claim(record)
        if berth is not None:
            self._claimed[berth.id] = berth
        return berth

    def unclaim(self, source: str, berth: Berth) -> None:
        """Take a berth back from a child that could not be minted."""
        del self._claimed[berth.id]
        self._pools[source].take_back(berth)

    def claimed(self, child: InstanceId) -> Berth | None:
        """Return the berth that was claimed for a child and not taken yet."""
        return self._claimed.get(child)

    def take(self, child: InstanceId) -> Berth | None:
        """Return the berth that was claimed for a child, for it to use and to end."""
        return self._claimed.pop(child, None)

    def hand_over(self, source: InstanceId, top: LayerId) -> Capture | None:
        """Return the file to take a capture of `source` into, which freezes `top`; None: any file will do.

        Whoever gets one tells `close_doors`, and `landed` in the end.
        """
        pool = self._pools.get(source)
        return None if pool is None else pool.hand_over(top)

    def close_doors(self, source: InstanceId) -> None:
        """Learn that nobody comes aboard the capture that is being taken any more."""
        if source in self._pools:
            self._pools[source].close_doors()

    def landed(self, source: InstanceId, capture: Capture | None) -> None:
        """Learn that a capture is over, or failed: what waits for it waits in vain.

        `capture` is what was handed over for it, None if nothing was.
        """
        if source in self._pools:
            self._pools[source].landed(capture)

    def status(self, source: str) -> ForkPoolStatus | None:
        """Return how full the pool of a source is; None: it has none."""
        pool = self._pools.get(source)
        return None if pool is None else pool.status()

    def berths(self) -> list[Berth]:
        """Return all there are that no child has taken, those that are being made or ended among them."""
        return [
            *self._claimed.values(),
            *(berth for pool in self._pools.values() for berth in pool.berths()),
        ]

    def _drop(self, source: str) -> None:
        self._pools.pop(source, None)


class _Pool:
    """The berths of one source. `run` makes and ends them, one after the other."""

    def __init__(
        self, site: Site, source: InstanceRecord, group: TaskGroup, on_over: Callable[[str], None]
    ) -> None:
        self._site, self._source, self._group, self._on_over = site, source, group, on_over
        self._generation: _Generation | None = None
        self._airborne: list[_Generation] = []
        self._retired: list[Berth] = []
        self._making: anyio.CancelScope | None = None
        self._changed = anyio.Event()
        self._used_at, self._is_resting = time.monotonic(), False
        self._error = ""
        self._taken = self._missed = 0

    # What is told

    def see(self, record: InstanceRecord) -> None:
        before, self._source = self._source, record
        generation = self._generation
        if record.spec.fork_pool != before.spec.fork_pool:
            self._touch()
        is_useless = not self._is_wanted or (generation is not None and record.layer != generation.below)
        if is_useless or record.spec.copied() != before.spec.copied():
            self._retire()
        if generation is not None:
            while len(generation.waiting) > record.spec.fork_pool:
                self._discard(generation.waiting.pop())
        self._changed.set()

    def claim(self, record: InstanceRecord) -> Berth | None:
        self._touch()
        for generation in (*self._airborne, self._generation):
            if generation is None or not generation.is_boarding or not generation.waiting:
                continue
            if generation.waiting[-1].record.spec == record.spec:
                self._taken += 1
                BERTHS.labels("taken").inc()
                BERTHS_WAITING.dec()
                generation.claimed_count += 1
                return generation.waiting.pop()
        self._missed += 1
        BERTHS.labels("missed").inc()
        return None

    def take_back(self, berth: Berth) -> None:
        self._taken -= 1
        for generation in (*self._airborne, self._generation):
            if generation is not None and generation.below == berth.below and generation.is_boarding:
                generation.waiting.append(berth)
                generation.claimed_count -= 1
                BERTHS_WAITING.inc()
                return
        self._retired.append(berth)
        self._changed.set()

    def hand_over(self, top: LayerId) -> Capture | None:
        generation = self._generation
        if generation is None:
            return None
        if generation.below != top or generation.chain != self._site.layers.chain(top):
            self._retire()
            return None
        self._generation = None
        self._airborne.append(generation)
        self._stop_making()
        return generation.capture

    def close_doors(self) -> None:
        for generation in self._airborne:
            generation.is_boarding = False

    def landed(self, capture: Capture | None) -> None:
        if capture is None and self._generation is not None:
            self._generation.claimed_count = 0  # Whoever has claimed of it went aboard without.
            self._changed.set()
        for generation in self._airborne:
            if generation.capture is capture:
                self._airborne.remove(generation)
                generation.is_boarding = False
                self._discard(*generation.waiting)
                generation.waiting.clear()
                self._touch()
                return

    def status(self) -> ForkPoolStatus:
        waiting = sum(
            len(generation.waiting)
            for generation in (*self._airborne, self._generation)
            if generation is not None and generation.is_boarding
        )
        return ForkPoolStatus(
            size=self._source.spec.fork_pool,
            waiting_count=waiting,
            taken_count=self._taken,
            missed_count=self._missed,
            is_resting=self._is_resting,
            error=self._error,
        )

    def berths(self) -> list[Berth]:
        generations = [*self._airborne, *([] if self._generation is None else [self._generation])]
        return [*self._retired, *(berth for generation in generations for berth in generation.waiting)]

    # What is done

    async def run(self) -> None:
        """Keep the pool as full as it is to be, until it is wanted no more or we are cancelled."""
        try:
            while True:
                self._changed = anyio.Event()
                is_clean = await self._end_retired()
                if self._is_over:
                    return
                self._rest_if_idle()
                if self._needs_one and await self._make_one():
                    continue
                is_well = is_clean and not (self._error and self._needs_one)
                with anyio.move_on_after(self._until_idle_s() if is_well else RETRY_S):
                    await self._changed.wait()
        except BaseException:  # The daemon leaves.
            for generation in self._airborne:
                self._discard(*generation.waiting)
                generation.waiting.clear()
            self._retire()
            await self._end_retired()  # What cannot be ended now, the next start ends.
            raise
        finally:
            self._on_over(self._source.id)

    @property
    def _is_wanted(self) -> bool:
        source = self._source
        return source.spec.fork_pool > 0 and source.state is State.RUNNING and not source.is_deleting

    @property
    def _is_there(self) -> bool:
        return self._source.id in self._site.rigs

    @property
    def _is_over(self) -> bool:
        source = self._source
        is_asked_for = source.spec.fork_pool > 0 and not source.is_deleting
        return not (is_asked_for or self._airborne or self._retired)

    @property
    def _needs_one(self) -> bool:
        if not (self._is_wanted and self._is_there) or self._is_resting or self._airborne:
            return False
        generation = self._generation
        if generation is None:
            return True
        is_about_to_go = generation.capture is not None and generation.claimed_count > 0
        return not is_about_to_go and len(generation.waiting) < self._source.spec.fork_pool

    async def _make_one(self) -> bool:
        """Make one berth; returns False if that failed."""
        try:
            generation = self._generation = self._generation or self._begin()
            berth = reserve_berth(self._site, self._source, generation.below, generation.capture)
            await self._start(berth, generation)
        except Exception as error:
            self._fail(error)
            return False
        self._error = ""
        return True

    async def _start(self, berth: Berth, generation: _Generation) -> None:
        is_waiting = False
        try:
            with anyio.CancelScope() as self._making:
                await self._fill(berth)
                is_waiting = generation is self._generation
        finally:
            self._making = None
            if not is_waiting:
                self._retired.append(berth)
        if is_waiting:
            generation.waiting.append(berth)
            BERTHS.labels("made").inc()
            BERTHS_WAITING.inc()
            self._group.start_soon(self._watch, berth)

    def _begin(self) -> _Generation:
        """Begin with the berths of the next capture.

        Raises:
            RametError: the source has no disk to stand on just now, or there is no descriptor.
        """
        layer = self._site.rigs[self._source.id].layer
        chain = self._site.layers.chain(layer)
        try:
            capture = open_memory_capture(self._source.spec.memory_bytes_max)
        except OSError as error:
            raise Broken(f"no file can be opened for a capture: {error.strerror}") from error
        return _Generation(capture, layer, chain)

    async def _fill(self, berth: Berth) -> None:
        assert berth.capture is not None, "it is for a capture to come"
        await start_berth(self._site, berth, berth.capture)

    async def _watch(self, berth: Berth) -> None:
        """Do without a berth whose VMM ends while it waits."""
        assert berth.vm is not None, "it waits"
        await berth.vm.wait_exited()
        generation = self._generation
        if generation is not None and berth in generation.waiting:
            log.warning("berth_ended", berth=berth.id, source=self._source.id)
            generation.waiting.remove(berth)
            self._discard(berth)

    async def _end_retired(self) -> bool:
        """End what can be of no use any more; returns whether nothing is left of it."""

        async def end(berth: Berth) -> None:
            try:
                await end_berth(self._site, berth)
            except Exception as error:
                is_known = isinstance(error, RametError)
                log.warning("berth_not_ended", berth=berth.id, error=str(error), exc_info=not is_known)
                self._retired.append(berth)

        retired, self._retired = self._retired, []
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                for berth in retired:
                    group.start_soon(end, berth)
        return not self._retired

    def _retire(self) -> None:
        """Give up the berths of a capture that will not come."""
        generation, self._generation = self._generation, None
        if generation is not None:
            self._stop_making()
            self._discard(*generation.waiting)
            generation.waiting.clear()
            if generation.capture is not None:
                generation.capture.close()

    def _discard(self, *berths: Berth) -> None:
        self._retired += berths
        BERTHS.labels("discarded").inc(len(berths))
        BERTHS_WAITING.dec(len(berths))
        self._changed.set()

    def _stop_making(self) -> None:
        if self._making is not None:
            self._making.cancel()

    def _fail(self, error: Exception) -> None:
        is_known = isinstance(error, RametError)
        text = str(error) if is_known else f"internal error: {type(error).__name__}: {error}"
        if text != self._error:
            log.warning("berth_not_made", source=self._source.id, error=text, exc_info=not is_known)
        self._error = text
        BERTHS.labels("failed").inc()

    def _touch(self) -> None:
        self._used_at, self._is_resting = time.monotonic(), False
        self._changed.set()

    def _until_idle_s(self) -> float:
        if self._is_resting:
            return float("inf")
        return max(0.0, self._used_at + self._site.fork_pool_idle_s - time.monotonic())

    def _rest_if_idle(self) -> None:
        """Hold no berths for a source that is not forked any more; the next fork has them made again."""
        if self._is_wanted and not self._airborne and not self._is_resting and self._until_idle_s() <= 0:
            self._is_resting = True
            self._retire()


class _StoredPool(_Pool):
    """The berths of a snapshot, of which any number of forks can be made at any time."""

    def __init__(
        self,
        site: Site,
        source: InstanceRecord,
        group: TaskGroup,
        on_over: Callable[[str], None],
        capture: CaptureId,
    ) -> None:
        super().__init__(site, source, group, on_over)
        self._stored = capture

    @property
    def _is_there(self) -> bool:
        return True

    def _begin(self) -> _Generation:
        assert self._source.layer is not None, "a snapshot has a disk"
        return _Generation(None, self._source.layer, self._site.layers.chain(self._source.layer))

    async def _fill(self, berth: Berth) -> None:
        berth.stored = self._stored
        packed = waking_driver(self._site, self._source).takes_packed
        async with self._site.captures.opened(self._stored, may_be_packed=packed) as capture:
            await start_berth(self._site, berth, capture)
