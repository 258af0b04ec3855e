"""A daemon killed at any instruction loses no guest and leaves nothing that nobody owns."""

import os
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.client import ConnectionBroken
from ramet.wire_api.instances import CreateInstance
from tests.net.namespaces import own_namespace
from tests.vm.daemon import Daemon, Leftovers
from tests.vm.dying_daemon import POINTS
from tests.vm.images import HTTP_PORT, IMAGE, write_image
from tests.vm.site import vmm_pids

pytestmark = pytest.mark.vm

DELETING = ("VMM killed", "endpoint released", "layer released", "folder removed")
FORKING = tuple(point for point in POINTS if point not in DELETING)


@pytest.fixture(scope="module")
def daemon(kernel_package: Path | None) -> Iterator[Daemon]:
    """Return a running daemon with one instance, "source", in a namespace of its own."""
    folder = Path(tempfile.mkdtemp(prefix="rmt-", dir="/tmp"))
    write_image(folder / "image")
    if kernel_package is not None:
        os.environ["RAMET_KERNEL_PACKAGE"] = str(kernel_package)
    daemon = Daemon(folder)
    with own_namespace():
        try:
            daemon.start()
            daemon.client.import_image(str(folder / "image"), IMAGE)
            body = CreateInstance(name="source", image=IMAGE, size="256MB", overlay_size="1GB", vcpus=1)
            assert daemon.client.create(body).state == "Running"
            daemon.sh("source", "echo memory0 >/dev/shm/state; echo disk0 >/var/state; sync")
            yield daemon
            daemon.stop()
        finally:
            for pid in vmm_pids(folder):
                os.kill(pid, 9)
            shutil.rmtree(folder)


def _check_whole(daemon: Daemon, name: str, value: str) -> None:
    """Assert that a guest runs, answers, is itself, and has what it had."""
    instance = daemon.client.get(name)
    assert (instance.state, instance.state_error) == ("Running", None)
    assert daemon.sh(name, "cat /proc/sys/kernel/hostname /dev/shm/state /var/state").split() == [
        name,
        value,
        value,
    ]
    assert instance.network is not None
    url = f"http://{instance.network.ip}:{HTTP_PORT}/alive"
    with urllib.request.urlopen(url, timeout=20) as answer:
        assert answer.read() == b"yes"


def _check_only(daemon: Daemon, count: int) -> None:
    """Assert that `count` running instances are all there is."""
    assert daemon.leftovers() == Leftovers(
        vmm_count=count,
        tap_count=count,
        admitted_count=count,
        folder_count=count,
        record_count=count,
        journal_count=0,
    )


def test_guests_run_on_while_the_daemon_is_dead_and_are_found_again(daemon: Daemon) -> None:
    daemon.sh("source", "echo kept >/dev/shm/state; echo kept >/var/state")
    made = daemon.client.fork_many("source", 2, "kept")
    assert made.succeeded == 2
    pids = sorted(vmm_pids(daemon.data))

    daemon.kill()

    assert sorted(vmm_pids(daemon.data)) == pids
    daemon.start()
    assert sorted(vmm_pids(daemon.data)) == pids
    for name in ("source", "kept-1", "kept-2"):
        _check_whole(daemon, name, "kept")
    _check_only(daemon, 3)
    # What was found again can be forked, and ended.
    daemon.client.fork("kept-1", "grandchild")
    _check_whole(daemon, "grandchild", "kept")
    for name in ("grandchild", "kept-1", "kept-2"):
        daemon.client.delete(name)
    _check_only(daemon, 1)


@pytest.mark.parametrize("point", FORKING)
def test_a_daemon_killed_while_it_forks_leaves_a_running_source_and_nothing_half_made(
    daemon: Daemon, point: str
) -> None:
    value = point.replace(" ", "-")
    daemon.sh("source", f"echo {value} >/dev/shm/state; echo {value} >/var/state")
    pid = daemon.pid_of(daemon.client.get("source").id)
    daemon.stop()
    daemon.start(dying_at=point)

    with pytest.raises(ConnectionBroken):
        daemon.client.fork_many("source", 2, "half")
    daemon.wait_killed()
    daemon.start()

    daemon.wait_for_names(["source"])
    assert daemon.pid_of(daemon.client.get("source").id) == pid
    _check_whole(daemon, "source", value)
    _check_only(daemon, 1)


@pytest.mark.parametrize("point", DELETING)
def test_a_daemon_killed_while_it_deletes_finishes_that_when_it_is_back(daemon: Daemon, point: str) -> None:
    daemon.client.fork("source", "doomed")
    daemon.stop()
    daemon.start(dying_at=point)

    with pytest.raises(ConnectionBroken):
        daemon.client.delete("doomed")
    daemon.wait_killed()
    daemon.start()

    daemon.wait_for_names(["source"])
    _check_only(daemon, 1)
    daemon.client.fork("source", "doomed")
    daemon.client.delete("doomed")


@pytest.mark.parametrize("is_daemon_alive", [True, False])
def test_a_vmm_that_is_killed_stops_its_instance_and_no_other(daemon: Daemon, is_daemon_alive: bool) -> None:
    daemon.sh("source", "echo safe >/dev/shm/state; echo safe >/var/state")
    doomed = daemon.client.fork("source", "doomed")
    child = daemon.client.fork("doomed", "child")
    if not is_daemon_alive:
        daemon.kill()
    os.kill(daemon.pid_of(doomed.id), 9)
    if not is_daemon_alive:
        daemon.start()

    assert daemon.client.wait("doomed", "Stopped", "30s").state == "Stopped"
    assert daemon.client.get("doomed").state_error
    for name in ("source", "child"):
        _check_whole(daemon, name, "safe")
    daemon.client.delete("doomed")
    _check_whole(daemon, "child", "safe")
    daemon.client.delete(child.id)
    _check_only(daemon, 1)


def test_a_daemon_that_ends_in_good_order_leaves_guests_and_comes_back_to_them(daemon: Daemon) -> None:
    daemon.sh("source", "echo last >/dev/shm/state; echo last >/var/state")

    daemon.stop()
    assert len(vmm_pids(daemon.data)) == 1
    daemon.start()

    _check_whole(daemon, "source", "last")
    daemon.client.delete("source")
    _check_only(daemon, 0)
