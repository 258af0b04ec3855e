"""Instances at one instant that does not pass, to be copied or kept under a name.

What sleeps stands still already. What is stopped gets a new layer over its disk, so that the one below is
nobody's to write. What runs is captured.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

import anyio
from anyio.abc import TaskGroup

from ramet.core.ids import InstanceId, LayerId, mint_id
from ramet.core.spec import InstanceRecord, RestorePoint, State
from ramet.disks.layers import LayerStore
from ramet.effects.captures import Look, SourceCaptures, Tell
from ramet.effects.site import Site
from ramet.instance.events import LayerSwitched
from ramet.instance.fleet_types import WrongState
from ramet.snapshots.flight import Flights


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


@dataclass(frozen=True, slots=True)
class _Frozen:
    """The disk of a stopped instance, below a new layer that is its own to write. Pinned until `close`."""

    layer: LayerId
    layers: LayerStore

    def close(self) -> None:
        self.layers.unpin(self.layer)


class RestorePoints:
    """Makes restore points of the instances of a site.

    Args:
        turn_of: what keeps the next run of an instance from beginning while it is held.
    """

    def __init__(
        self,
        site: Site,
        captures: SourceCaptures,
        group: TaskGroup,
        tell: Tell,
        look: Look,
        turn_of: Callable[[InstanceId], anyio.Lock],
    ) -> None:
        self._site, self._captures, self._tell, self._look = site, captures, tell, look
        self._turn_of = turn_of
        # Shared by all who wait, and seen through whoever of them goes away.
        self._stopped = Flights(self._freeze_stopped, group)

    @asynccontextmanager
    async def of(self, record: InstanceRecord, *, with_memory: bool) -> AsyncIterator[RestorePoint]:
        """Have `record` as it is now stand still, inside.

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
                async with self._stopped.board(record.id) as freezing:
                    yield RestorePoint((await freezing.wait_landed()).layer, None)
            case _:
                raise WrongState(
                    f"instance {record.name} is {record.state}: "
                    + ("it has no memory to keep" if with_memory else "it cannot be copied now"),
                    state=record.state,
                )

    async def _freeze_stopped(self, instance: InstanceId, close_doors: Callable[[], None]) -> _Frozen:
        """Put a new layer over the disk of a stopped instance, and pin the former top."""
        layers = self._site.layers
        async with self._turn_of(instance):
            close_doors()
            now = self._look(instance)
            if now.state is not State.STOPPED or now.layer is None:
                raise WrongState(f"instance {now.name} has just been started", state=now.state)
            new_top = layers.create_on(now.layer, now.spec.disk_bytes)
            layers.pin(now.layer)
            with anyio.CancelScope(shield=True):
                await self._tell(instance, LayerSwitched(new_top, now.layer))
            for layer in {now.layer, new_top} - {self._look(instance).layer}:
                layers.release(layer)  # Both, if it was put back to a snapshot meanwhile.
            return _Frozen(now.layer, layers)
