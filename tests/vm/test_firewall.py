"""What a guest reaches, tried from inside one, each beside a control that shows the target was there."""

import socket

import pytest

from tests.vm.images import HTTP_PORT
from tests.vm.site import FAR_ADDRESS, GATEWAY, METADATA_ADDRESS, NEAR_ADDRESS, Children, Site, http_get
from tests.vm.wire import wire_watched

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

API_PORT = 4973
FAR_PORT = 7000


async def _reached(site: Site, name: str, targets: dict[str, tuple[str, int]]) -> set[str]:
    """Return which of `targets` a guest can open a TCP connection to; all are tried at once."""
    tries = "".join(
        f"(nc -w 3 {ip} {port} -e true </dev/null >/dev/null 2>&1 && echo {what}) & "
        for what, (ip, port) in targets.items()
    )
    return set((await site.sh(name, f"{tries} wait")).split())


async def test_a_guest_reaches_the_uplink_and_nothing_else(
    site: Site, source: str, children: Children
) -> None:
    await children.fork(source, "neighbour")
    neighbour = site.ip_of("neighbour")
    with (
        socket.create_server(("0.0.0.0", API_PORT)),
        site.far_side.socket(socket.SOCK_STREAM) as far,
    ):
        far.bind(("0.0.0.0", FAR_PORT))
        far.listen()
        targets = {
            "gateway": (GATEWAY, API_PORT),
            "uplink-of-host": (NEAR_ADDRESS, API_PORT),
            "neighbour": (neighbour, HTTP_PORT),
            "metadata": (METADATA_ADDRESS, FAR_PORT),
            "far": (FAR_ADDRESS, FAR_PORT),
        }
        # All of them are there, as the host can tell.
        for ip, port in targets.values():
            socket.create_connection((ip, port), timeout=5).close()
        for _ in range(2):
            far.accept()[0].close()

        assert await _reached(site, source, targets) == {"far"}

        far.settimeout(5)
        connection, (peer, _) = far.accept()
        connection.close()
        assert peer == NEAR_ADDRESS, "the guest's address was translated"
    # The gateway answers pings, so its silence above was the firewall's word.
    await site.sh(source, f"ping -c 1 -w 5 {GATEWAY}")
    assert await http_get(neighbour, "/alive") == "yes"


async def test_a_guest_that_takes_its_neighbours_address_is_not_heard(
    site: Site, source: str, children: Children
) -> None:
    await children.fork(source, "honest", "thief")
    wanted = site.ip_of("honest")
    mac = site.fleet.get("honest").mac
    await site.sh("thief", f"ping -c 1 -w 5 {GATEWAY}")

    await site.sh(
        "thief",
        f"ip link set eth0 down; ip link set eth0 address {mac}; ip address flush dev eth0;"
        f"ip address add {wanted}/16 dev eth0; ip link set eth0 up",
    )

    port = site.parts.network.endpoint(site.id_of("thief")).tap_name
    with wire_watched() as seen:
        stolen = await site.run("thief", "ping", "-c", "1", "-W", "2", GATEWAY)
    assert stolen.exit_code == 1
    assert port not in {seen_port for seen_port, _ in seen.macs | seen.ips}
    assert (await site.get_state("honest"))["hostname"] == "honest"
