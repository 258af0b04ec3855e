"""A real guest gives memory back and has it again; one that came of a capture is left alone."""

import pytest

from ramet.policies.reclaiming import Reclaimed, StepStatus, Taken
from tests.vm.site import MEMORY_BYTES, Children, Site

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

TAKEN_BYTES = MEMORY_BYTES // 4
_TOTAL_KB = "$(sed -n 's/MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo)"


async def test_a_guest_gives_memory_back_for_a_while_and_its_fork_is_not_asked(
    site: Site, source: str, children: Children
) -> None:
    before_kb = int(await site.sh(source, f"echo {_TOTAL_KB}"))
    await children.fork(source, "early")
    reclaims = site.parts.keepers.reclaims

    async def take(wanted_bytes: int, name: str) -> tuple[Reclaimed, Taken]:
        found = await reclaims.reclaim(wanted_bytes, 3600.0)
        return found, next(one for one in found.taken if one.step.guest.name == name)

    held, own = await take(TAKEN_BYTES, source)
    assert (own.status, own.applied_bytes) == (StepStatus.APPLIED, TAKEN_BYTES)
    child = next(one for one in held.taken if one.step.guest.name == "early")
    assert (child.status, child.applied_bytes) == (StepStatus.UNSUPPORTED, 0)
    assert "capture" in child.error
    await site.wait_for(source, f"test {_TOTAL_KB} -le {before_kb - (TAKEN_BYTES >> 10)}")
    await children.fork(source, "late")  # It has its source's balloon.
    await reclaims.reclaim(0, 1.0)
    for name in (source, "late"):
        await site.wait_for(name, f"test {_TOTAL_KB} -eq {before_kb}")
