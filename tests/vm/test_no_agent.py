"""An instance that nobody enters: it still sleeps, wakes, forks and ends as others do."""

from collections.abc import AsyncIterator
from dataclasses import replace

import anyio
import anyio.lowlevel
import pytest

from ramet.core.spec import State
from ramet.guest.errors import GuestRefused
from ramet.guest.exec import open_exec
from ramet.guest.files import open_archive, put_archive, stat_path
from ramet.instance.fleet_types import ExecCommand, GuestAgentSkipped
from tests.vm.site import Children, Site, http_get

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

NAME, CHILD = "closed", "closed-child"
TIMEOUT_S = 60.0


async def nothing() -> AsyncIterator[bytes]:
    empty: tuple[bytes, ...] = ()
    for chunk in empty:
        yield chunk


async def demand_serves(site: Site, name: str) -> None:
    """Wait until the guest's HTTP server says that it is `name`: nobody can ask inside whether it runs."""
    with anyio.fail_after(TIMEOUT_S):
        while True:
            try:
                told = await http_get(site.ip_of(name), "/cgi-bin/state")
            except OSError:
                await anyio.lowlevel.checkpoint()
            else:
                assert f"hostname {name}" in told.splitlines()
                return


async def demand_closed(site: Site, name: str) -> None:
    """Check that neither the daemon nor the guest itself lets anybody in."""
    with pytest.raises(GuestAgentSkipped):
        await site.fleet.open_exec(name, ExecCommand(("true",)))
    with pytest.raises(GuestAgentSkipped):
        await site.fleet.stat_path(name, "/", follow_links=False)
    with pytest.raises(GuestAgentSkipped):
        site.fleet.open_archive(name, "/etc", follow_links=False)
    with pytest.raises(GuestAgentSkipped):
        await site.fleet.put_archive(name, "/tmp", nothing(), keep_owner=False)
    channel = await site.rig(name).channel()
    for asking in (
        open_exec(channel, ("true",)),
        stat_path(channel, "/", follow_links=False),
        open_archive(channel, "/etc", follow_links=False).__aenter__(),
        put_archive(channel, "/tmp", nothing(), keep_owner=False),
    ):
        with pytest.raises(GuestRefused) as refused:
            await asking
        assert refused.value.guest_code == "agent_skipped"


async def test_nobody_enters_a_guest_without_an_agent_and_all_else_works(
    site: Site, children: Children
) -> None:
    fleet = site.fleet
    children.names.append(NAME)
    made = await fleet.create(NAME, replace(site.spec(), skip_guest_agent=True))
    assert made.record.state is State.RUNNING, made.record.state_error
    await demand_serves(site, NAME)
    await demand_closed(site, NAME)

    await children.fork(NAME, CHILD)
    await demand_serves(site, CHILD)
    await demand_serves(site, NAME)
    assert site.ip_of(CHILD) != site.ip_of(NAME)
    await demand_closed(site, CHILD)

    await fleet.standby(CHILD)
    await fleet.restore(CHILD)
    await demand_serves(site, CHILD)
    await demand_closed(site, CHILD)

    await fleet.stop(CHILD)
    await fleet.start(CHILD)
    await demand_serves(site, CHILD)
    await demand_closed(site, CHILD)
    assert (await fleet.stop(CHILD)).record.state is State.STOPPED
