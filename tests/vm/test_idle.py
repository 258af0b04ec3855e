"""A guest in which nothing happens does nothing: counted in wake-ups, not in time."""

import re

import anyio
import pytest

from tests.vm.site import Children, Site

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

# Looks at PID 1 twice and says what it saw on the kernel's console, which PID 1 has no part in.
LOOK_TWICE = rb"""
look() {
    grep ctxt /proc/1/status
    sed "s/.*) //" /proc/1/stat | cut -d " " -f 12,13
}
sleep 1
first=$(look)
sleep 3
echo looked $first then $(look) >/dev/ttyS0
"""
LOOKED = re.compile(r"looked (.*) then (.*)")
LOOKED_TIMEOUT_S = 30
POLL_INTERVAL_S = 0.2


@pytest.mark.parametrize("connected", [True, False])
async def test_the_agent_sleeps_while_nothing_happens(
    site: Site, source: str, children: Children, connected: bool
) -> None:
    await children.fork(source, "idle")
    await site.sh("idle", "cat >/dev/shm/look", stdin=LOOK_TWICE)
    # A session of its own: when it ends, nobody tells PID 1 but the kernel, and then it has looked.
    await site.sh("idle", "setsid sh /dev/shm/look </dev/null >/dev/null 2>&1 &")
    if not connected:
        await site.rig("idle").close()

    console = site.folder / "instances" / site.id_of("idle") / "console.log"
    with anyio.fail_after(LOOKED_TIMEOUT_S):
        while not (looked := LOOKED.search(console.read_text())):  # noqa: ASYNC110  # Only the file tells.
            await anyio.sleep(POLL_INTERVAL_S)

    # Voluntary and involuntary switches, ticks of user and of system time.
    assert re.findall(r"\d+", looked[1]) == re.findall(r"\d+", looked[2])
    assert len(re.findall(r"\d+", looked[1])) == 4
