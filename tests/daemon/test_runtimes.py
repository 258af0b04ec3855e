"""What `GET /capabilities` says of hypervisors: all of them, what each can do, and whether it can here."""

from ramet.daemon.main import runtimes

ALWAYS = ("snapshots", "standby", "fork")


def test_those_that_this_host_lacks_are_told_as_that() -> None:
    found = {each.name: each for each in runtimes(["qemu"], can_reclaim=True)}
    assert found.keys() == {"qemu", "qemu-microvm", "firecracker", "cloud-hypervisor"}
    assert [name for name, each in found.items() if each.is_available] == ["qemu"]
    assert all(each.features[:3] == ALWAYS for each in found.values())


def test_each_is_told_with_what_it_can_do() -> None:
    found = {each.name: set(each.features) - {*ALWAYS} for each in runtimes([], can_reclaim=True)}
    common = {"disk-io-limit", "balloon-control"}
    assert found == {
        "qemu": common,
        "qemu-microvm": common,
        "firecracker": {*common, "vsock"},
        "cloud-hypervisor": {*common, "vsock", "hotplug-memory"},
    }


def test_where_no_memory_is_taken_back_no_balloon_is_told() -> None:
    assert not [each for each in runtimes([], can_reclaim=False) if "balloon-control" in each.features]
