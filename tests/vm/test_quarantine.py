"""No frame with the parent's MAC or address ever passes from a child's port, and the bridge never learns one.

Proven per port, behind the filter; and a control shows that without our precautions the same watch does see
such frames, from the same guests.
"""

from collections.abc import Callable

import pytest

from ramet.linux import netlink
from ramet.vmm.qemu import command, driver
from tests.vm.site import Children, Site
from tests.vm.wire import Seen, nft, wire_watched

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

CHILD_COUNT = 6


async def _fork_under_watch(site: Site, children: Children, source: str) -> Seen:
    names = [f"{source}-{number}" for number in range(CHILD_COUNT)]
    with wire_watched() as seen:
        await children.fork(source, *names)
        for name in (source, *names):
            await site.get_state(name)
    return seen


def _ports(site: Site, names: list[str]) -> dict[str, tuple[str, str]]:
    """Return (MAC, address) by TAP."""
    endpoints = [site.parts.network.endpoint(site.id_of(name)) for name in names]
    return {endpoint.tap_name: (endpoint.mac, str(endpoint.ip)) for endpoint in endpoints}


async def test_no_port_passes_or_is_credited_with_the_parents_identity(
    site: Site, source: str, children: Children
) -> None:
    seen = await _fork_under_watch(site, children, source)

    ports = _ports(site, [source, *children.names])
    # Each was seen with what is its own, and with nothing else; so the watch sees, and so does the filter.
    assert seen.macs == {(port, mac) for port, (mac, _) in ports.items()}
    assert seen.ips == {(port, ip) for port, (_, ip) in ports.items()}
    assert seen.learned == {(port, mac) for port, (mac, _) in _ports(site, children.names).items()}


async def test_without_the_precautions_the_watch_sees_the_parents_identity_on_its_childrens_ports(
    site: Site, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    command_line = command.command_line

    def announcing(*arguments: object, **options: object) -> list[str]:
        made: Callable[..., list[str]] = command_line
        return [
            part.replace("guest_announce=off", "guest_announce=on")
            .replace("migration.announce-rounds=0", "migration.announce-rounds=5")
            .replace(" ipv6.disable=1", "")
            for part in made(*arguments, **options)
        ]

    open_port = netlink.open_port
    monkeypatch.setattr(driver, "command_line", announcing)
    monkeypatch.setattr(netlink, "open_port", lambda index, **_: open_port(index, learning=True))
    children.names.append("shouter")
    await site.boot("shouter")
    table = f"ramet_{site.parts.network.config.name}"
    firewall = site.parts.network._firewall
    nft("flush", "chain", "bridge", table, "from_guest")
    try:
        seen = await _fork_under_watch(site, children, "shouter")
    finally:
        await firewall.open(site.parts.network.statistics().uplink)

    own = _ports(site, ["shouter"])
    ((own_port, (mac, ip)),) = own.items()
    assert [port for port, found in seen.macs if found == mac and port != own_port]
    assert [port for port, found in seen.ips if found == ip and port != own_port]
    assert [port for port, found in seen.learned if found == mac and port != own_port]
