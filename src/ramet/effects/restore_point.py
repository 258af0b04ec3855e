"""Instances at one instant that does not pass, to be copied or kept under a name.

What sleeps stands still already. What is stopped gets a new layer over its disk, so that the one below is
nobody's to write. What runs is captured.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import anyio

from ramet.core.ids import LayerId, mint_id
from ramet.core.spec import InstanceRecord, RestorePoint, State
from ramet.effects.captures import Look, SourceCaptures, Tell
from ramet.effects.site import Site
from ramet.instance.events import LayerSwitched
from ramet.instance.fleet_types import WrongState


@contextmanager
def kept(site: Site, point: RestorePoint) -> Iterator[RestorePoint]:
    """Have a restore point that is somebody's outlive him, inside.

    Raises:
        LayerBroken, CaptureBroken: it is not whole any more.
    """
    holder = f"copy {mint_id()}"
    try:
        site.layers.pin(point.layer)
        if point.capture is not None:
            site.captures.hold(point.capture, holder)
        yield point
    finally:
        if point.capture is not None:
            site.captures.release(point.capture, holder)
        site.layers.unpin(point.layer)


class RestorePoints:
    """Makes restore points of the instances of a site."""

    def __init__(self, site: Site, captures: SourceCaptures, tell: Tell, look: Look) -> None:
        self._site, self._captures, self._tell, self._look = site, captures, tell, look

    @asynccontextmanager
    async def of(
        self, record: InstanceRecord, turn: anyio.Lock, *, with_memory: bool
    ) -> AsyncIterator[RestorePoint]:
        """Have `record` as it is now stand still, inside; `turn` keeps its next run from beginning meanwhile.

        Without memory a running instance is as after a power cut, with its file systems written out before.

        Raises:
            WrongState: it has no memory to speak of, or is on its way from one state to another.
            RametError: it cannot be captured.
        """
        match record.state:
            case State.RUNNING if with_memory:
                async with self._captures.stored.board(record.id) as flight:
                    yield (await flight.wait_landed()).point
            case State.RUNNING:
                async with self._captures.live.board(record.id) as flight:
                    yield RestorePoint((await flight.wait_landed()).frozen, None)
            case State.STANDBY:
                assert record.layer is not None, "what sleeps has a disk"
                point = RestorePoint(record.layer, record.capture if with_memory else None)
                with kept(self._site, point):
                    yield point
            case State.STOPPED if record.layer is not None and not with_memory:
                layer = await self._freeze_stopped(record, turn)
                try:
                    yield RestorePoint(layer, None)
                finally:
                    self._site.layers.unpin(layer)
            case _:
                raise WrongState(
                    f"instance {record.name} is {record.state}: "
                    + ("it has no memory to keep" if with_memory else "it cannot be copied now"),
                    state=record.state,
                )

    async def _freeze_stopped(self, record: InstanceRecord, turn: anyio.Lock) -> LayerId:
        """Put a new layer over the disk of a stopped instance; returns the former top, pinned."""
        layers = self._site.layers
        async with turn:
            now = self._look(record.id)
            if now.state is not State.STOPPED or now.layer is None:
                raise WrongState(f"instance {record.name} has just been started", state=now.state)
            try:
                layers.pin(now.layer)
                new_top = layers.create_on(now.layer, now.spec.overlay_bytes)
                with anyio.CancelScope(shield=True):
                    await self._tell(record.id, LayerSwitched(new_top))
                if self._look(record.id).layer != new_top:  # It is being deleted.
                    layers.release(new_top)
            except BaseException:
                layers.unpin(now.layer)
                raise
            layers.release(now.layer)
            return now.layer
