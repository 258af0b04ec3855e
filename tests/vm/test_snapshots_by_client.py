"""Standby, snapshots and forks from every state, with real guests, by the official client."""

import time
from collections.abc import Iterator

import httpx
import hypeman
import pytest
from hypeman import Hypeman

from tests.vm.daemon import END_TIMEOUT_S, POLL_INTERVAL_S, Daemon

pytestmark = [pytest.mark.vm]

TELL = "cat /dev/shm/state /var/state; hostname"


@pytest.fixture
def client(served: Daemon) -> Iterator[Hypeman]:
    """Return a client that leaves nothing of the test behind."""
    transport = httpx.Client(transport=httpx.HTTPTransport(uds=str(served.folder / "api.sock")), timeout=120)
    with Hypeman(base_url="http://localhost", api_key="none", http_client=transport) as client:
        yield client
        for snapshot in client.snapshots.list():
            client.snapshots.delete(snapshot.id)
        for instance in client.instances.list():
            if instance.name != "web":
                client.instances.delete(instance.id)


def write(served: Daemon, name: str, state: str) -> None:
    """Have a guest know `state`, in memory and on its disk."""
    served.sh(name, f"echo {state} | tee /var/state >/dev/shm/state; sync")


def address_of(client: Hypeman, name: str) -> str:
    network = client.instances.get(name).network
    assert network is not None
    assert network.ip is not None
    return network.ip


def wait_until_no_memory_is_stored(served: Daemon) -> None:
    until = time.monotonic() + END_TIMEOUT_S
    while any((served.data / "captures").iterdir()):
        assert time.monotonic() < until, list((served.data / "captures").iterdir())
        time.sleep(POLL_INTERVAL_S)


def test_what_sleeps_is_forked_and_wakes_and_its_snapshots_outlive_it(
    served: Daemon, client: Hypeman
) -> None:
    client.instances.fork("web", name="src", from_running=True)
    write(served, "src", "first")
    address = address_of(client, "src")
    running = client.instances.snapshots.create("src", kind="Standby", name="running", tags={"of": "src"})
    write(served, "src", "second")
    asleep = client.instances.standby("src")
    assert (asleep.state, asleep.has_snapshot) == ("Standby", True)
    with pytest.raises(hypeman.ConflictError, match="invalid_state"):
        client.instances.snapshots.create("src", kind="Stopped")
    sleeping = client.instances.snapshots.create("src", kind="Standby", name="sleeping")
    assert running.size_bytes > (running.uncompressed_size_bytes or 0) > 10 << 20
    assert client.instances.fork("src", name="asleep").state == "Standby"
    assert client.instances.fork("src", name="awake", target_state="Running").state == "Running"
    assert served.sh("awake", TELL) == "second\nsecond\nawake\n"

    assert client.instances.restore("src").state == "Running"
    assert (served.sh("src", TELL), address_of(client, "src")) == ("second\nsecond\nsrc\n", address)
    write(served, "src", "third")
    assert client.instances.restore("asleep").state == "Running"
    assert served.sh("asleep", TELL) == "second\nsecond\nasleep\n"
    assert len({address_of(client, name) for name in ("web", "src", "asleep", "awake")}) == 4

    client.instances.delete("src")
    assert client.snapshots.list(tags={"of": "src"}) == [running]
    for snapshot, state in ((running, "first"), (sleeping, "second")):
        child = client.snapshots.fork(snapshot.id, name=f"from-{snapshot.name}")
        assert child.state == "Running"
        assert served.sh(child.id, TELL) == f"{state}\n{state}\n{child.name}\n"
    client.snapshots.delete("running")
    client.snapshots.delete("sleeping")
    assert client.snapshots.list() == []
    wait_until_no_memory_is_stored(served)
    assert served.sh("from-running", TELL) == "first\nfirst\nfrom-running\n"


def test_what_is_stopped_is_forked_and_put_back(served: Daemon, client: Hypeman) -> None:
    client.instances.fork("web", name="src", from_running=True)
    write(served, "src", "first")
    address = address_of(client, "src")
    warm = client.instances.snapshots.create("src", kind="Standby", name="warm")
    write(served, "src", "second")
    with pytest.raises(hypeman.ConflictError, match="invalid_state"):
        client.instances.snapshots.restore(warm.id, id="src")
    client.instances.stop("src")
    cold = client.instances.snapshots.create("src", kind="Stopped", name="cold")
    assert client.instances.fork("src", name="stopped").state == "Stopped"
    assert client.instances.fork("src", name="booted", target_state="Running").state == "Running"
    assert served.sh("booted", "cat /var/state; hostname") == "second\nbooted\n"

    assert client.instances.snapshots.restore(warm.id, id="src").state == "Running"
    assert (served.sh("src", TELL), address_of(client, "src")) == ("first\nfirst\nsrc\n", address)
    client.instances.standby("src")
    assert client.instances.snapshots.restore(cold.id, id="src").state == "Stopped"
    assert client.snapshots.fork(cold.id, name="from-cold").state == "Stopped"
    other = client.snapshots.fork(cold.id, name="on-another", target_hypervisor="qemu-microvm")
    assert (other.state, other.hypervisor) == ("Stopped", "qemu-microvm")
    with pytest.raises(hypeman.InternalServerError, match="own hypervisor"):
        client.snapshots.fork(warm.id, name="warm-on-another", target_hypervisor="qemu-microvm")
    for name in ("src", "from-cold", "on-another"):
        assert client.instances.start(name).state == "Running"
        assert served.sh(name, "cat /var/state; hostname; test ! -e /dev/shm/state") == f"second\n{name}\n"
