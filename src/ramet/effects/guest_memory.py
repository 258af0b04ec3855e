"""The memory of running guests, and asking them to give some of it back."""

from collections.abc import Callable, Iterable, Sequence
from typing import Final

import anyio

from ramet.core.errors import RametError
from ramet.core.guest_memory import GuestMemory
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord, State
from ramet.effects.site import Site
from ramet.vmm.port import Ballooned, BalloonUnsupported, VmmFailed

MAX_CONCURRENT: Final = 16


class SiteGuests:
    """The guests of a site that run; `records` returns all instances."""

    def __init__(self, site: Site, records: Callable[[], Iterable[InstanceRecord]]) -> None:
        self._site, self._records = site, records

    async def look(self, instances: Iterable[InstanceId] | None = None) -> Sequence[GuestMemory]:
        """Return how it stands with guests; None: with all that run. Asks each VMM; never fails."""
        wanted = None if instances is None else set(instances)
        running = [
            record
            for record in self._records()
            if record.state is State.RUNNING and (wanted is None or record.id in wanted)
        ]
        found: dict[InstanceId, GuestMemory] = {}
        places = anyio.Semaphore(MAX_CONCURRENT)

        async def look_at(record: InstanceRecord) -> None:
            async with places:
                found[record.id] = await self._look_at(record)

        async with anyio.create_task_group() as group:
            for record in running:
                group.start_soon(look_at, record)
        return [found[record.id] for record in running]

    async def ask(self, instance: InstanceId, balloon_bytes: int) -> None:
        """Ask a guest to give back so much in all, in whole MiB; 0: to have all of it again.

        Raises:
            SizeOutOfRange: it has not so much.
            BalloonUnsupported: it cannot be asked.
            VmmFailed: it does not run any more, or its VMM did not do it.
        """
        rig = self._site.rigs.get(instance)
        if rig is None:
            raise VmmFailed("it does not run any more")
        if not isinstance(rig.vm, Ballooned):
            raise BalloonUnsupported("its hypervisor has no balloon")
        async with rig.capturing:  # What is being captured is not changed by us.
            await rig.vm.set_balloon(balloon_bytes)

    async def _look_at(self, record: InstanceRecord) -> GuestMemory:
        rig, hypervisor = self._site.rigs.get(record.id), record.spec.hypervisor
        assigned_bytes, balloon_bytes, unsupported, error = record.spec.memory_bytes, 0, "", ""
        if rig is None:
            error = "it does not run any more"
        elif not isinstance(rig.vm, Ballooned):
            unsupported = f"{hypervisor} has no balloon"
        else:
            try:
                balloon_bytes = await rig.vm.balloon_bytes()
                await rig.vm.demand_inflatable()
            except BalloonUnsupported as refusal:
                unsupported = refusal.message
            except RametError as failure:
                error = str(failure)
        return GuestMemory(
            record.id, record.name, hypervisor, assigned_bytes, balloon_bytes, unsupported, error
        )
