"""A daemon killed at any step loses no guest and leaves nothing that nobody owns."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ramet.client import ConnectionBroken
from ramet.wire_api.instances import CreateInstance, Instance
from tests.vm.daemon import END_TIMEOUT_S, POLL_INTERVAL_S, Daemon, Leftovers, own_daemon
from tests.vm.dying_daemon import OPERATIONS
from tests.vm.images import HTTP_PORT, IMAGE
from tests.vm.site import vmm_pids

pytestmark = pytest.mark.vm

SETTLE_TIMEOUT_S = 90.0
LIVED_S = 15.0
"""By then, one that has answered and is still there comes to no step any more."""
LIVED_SHARE = 10
"""One daemon in so many at most may come to its end without the step it was to be killed at."""
MAKING = ("create", "fork")
RESET = "echo b >/proc/sysrq-trigger; sleep 60"


@pytest.fixture(scope="module")
def daemon(kernel_package: Path | None) -> Iterator[Daemon]:
    """Return a running daemon with one instance, "source", in a namespace of its own."""
    with own_daemon(kernel_package) as daemon:
        daemon.start()
        daemon.client.import_image(str(daemon.folder / "image"), IMAGE)
        daemon.boot("source")
        daemon.sh("source", "echo memory0 >/dev/shm/state; echo disk0 >/var/state; sync")
        yield daemon


@contextmanager
def noted(step: str) -> Iterator[None]:
    """Have whatever fails inside say in which step the daemon had been killed."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"killed before: {step}")
        raise


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


def _check_only(daemon: Daemon, count: int, *, stopped: int = 0) -> None:
    """Assert that soon `count` running and `stopped` stopped instances are all there is."""
    known = count + stopped
    expected = Leftovers(count, count, count, known, known, journal_count=0)
    until = time.monotonic() + END_TIMEOUT_S
    while (found := daemon.leftovers()) != expected:
        assert time.monotonic() < until, found
        time.sleep(POLL_INTERVAL_S)


def _find(daemon: Daemon, name: str) -> Instance | None:
    """Return an instance as it is when it neither starts nor ends any more, None if it is gone."""
    until = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        found = [instance for instance in daemon.client.list() if instance.name == name]
        if not found:
            return None
        if found[0].state in ("Running", "Stopped"):
            return found[0]
        assert time.monotonic() < until, found
        time.sleep(POLL_INTERVAL_S)


class Dying:
    """One operation, about an instance called "new", in which the daemon dies at one step after the other."""

    def __init__(self, daemon: Daemon, operation: str) -> None:
        self.daemon, self.operation = daemon, operation
        daemon.stop()
        self._set_deadly("")
        daemon.start(is_mortal=True)

    def prepare(self) -> None:
        """Have "new" be there as the operation needs it."""
        if self.operation in MAKING:
            return
        new = _find(self.daemon, "new")
        if new is not None and new.state == "Stopped" and self.operation != "start":
            self.daemon.client.delete("new")
            new = None
        if new is None:
            new = self.daemon.client.fork("source", "new")
            self.daemon.sh("new", "echo kept >/var/kept; sync")
        if new.state == "Running" and self.operation == "start":
            self.daemon.client.stop("new")
            _check_only(self.daemon, 1, stopped=1)

    def operate(self) -> None:
        match self.operation:
            case "create":
                self.daemon.boot("new")
            case "fork":
                self.daemon.client.fork("source", "new")
            case "stop":
                self.daemon.client.stop("new")
            case "start":
                self.daemon.client.start("new")
            case "delete":
                self.daemon.client.delete("new")

    def find_steps(self) -> list[str]:
        """Do the operation, and return the steps that were taken until all was quiet."""
        self.operate()
        self._settle()
        steps = (self.daemon.folder / "steps").read_text().splitlines()
        self.check()
        return steps

    def die(self, step: str) -> bool:
        """Have the daemon killed when it is about to take a step of the operation, and start another.

        Returns whether it came to that step: what is done in the background is not the same each time.
        """
        self._set_deadly(step)
        with suppress(ConnectionBroken):  # Some steps are taken when all has been answered.
            self.operate()
        try:
            self.daemon.wait_killed(LIVED_S)
        except subprocess.TimeoutExpired:
            has_died = False
            self.daemon.end()
        else:
            has_died = True
        self._set_deadly("")
        self.daemon.start(is_mortal=True)
        return has_died

    def check(self) -> None:
        """Assert that "new" is as it was before, or as it was to become, and that there is nothing else."""
        state = self._settle()
        assert (
            state
            in {
                "create": (None, "Running"),
                "fork": (None, "Running"),
                "stop": ("Running", "Stopped"),
                "start": ("Stopped", "Running"),
                "delete": ("Running", None),
            }[self.operation]
        )
        if state == "Running":
            kept = "" if self.operation in MAKING else " /var/kept"
            found = self.daemon.sh("new", f"cat /proc/sys/kernel/hostname{kept}").split()
            assert found == ["new", "kept"][: 1 if self.operation in MAKING else 2]

    def _settle(self) -> str | None:
        """Wait until the host has what the records say, and nothing more; return the state of "new"."""
        new = _find(self.daemon, "new")
        state = None if new is None else new.state
        _check_only(self.daemon, 1 + (state == "Running"), stopped=int(state == "Stopped"))
        return state

    def clear(self) -> None:
        """Have the name be free for the next."""
        if self.operation in MAKING and _find(self.daemon, "new") is not None:
            self.daemon.client.delete("new")

    def close(self) -> None:
        """Have a daemon that lives be there for whoever comes next."""
        self.daemon.end()
        self.daemon.start()

    def _set_deadly(self, step: str) -> None:
        (self.daemon.folder / "deadly").write_text(step)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_daemon_killed_at_any_step_leaves_what_ran_running_and_nothing_half_made(
    request: pytest.FixtureRequest, daemon: Daemon, operation: str
) -> None:
    pid = daemon.pid_of(daemon.client.get("source").id)
    dying = Dying(daemon, operation)
    request.addfinalizer(dying.close)
    dying.prepare()
    steps = dying.find_steps()
    assert {"Database.save 1", "end of Database.transaction 1"} <= set(steps)
    assert [step for step in steps if step.startswith(("QemuVm.", "QemuDriver."))]
    lived = 0
    for number, step in enumerate(steps):
        with noted(step):
            value = f"{operation}-{number}"
            dying.clear()
            dying.prepare()
            daemon.sh("source", f"echo {value} >/dev/shm/state; echo {value} >/var/state")
            lived += not dying.die(step)
            assert daemon.pid_of(daemon.client.get("source").id) == pid
            _check_whole(daemon, "source", value)
            dying.check()
    assert lived * LIVED_SHARE < len(steps), lived
    if _find(daemon, "new") is not None:
        daemon.client.delete("new")
    _check_only(daemon, 1)


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


def test_a_guest_that_resets_itself_in_every_boot_is_stopped_each_time_and_boots_only_when_asked(
    daemon: Daemon,
) -> None:
    body = CreateInstance(name="wild", image=IMAGE, cmd=("sh", "-c", RESET), size="256MB", overlay_size="1GB")
    daemon.client.create(body)
    for _ in range(2):
        assert daemon.client.wait("wild", "Stopped", "60s").state == "Stopped"
        _check_only(daemon, 1, stopped=1)
        assert "reset itself" in (daemon.client.get("wild").state_error or "")
        daemon.client.start("wild")
    assert daemon.client.wait("wild", "Stopped", "60s").state == "Stopped"
    console = daemon.data / "instances" / daemon.client.get("wild").id / "console.log"
    assert console.read_bytes().count(b"sysrq: Resetting") == 3
    daemon.client.delete("wild")
    _check_only(daemon, 1)


def test_a_second_daemon_on_the_folder_is_refused_and_the_first_goes_on(daemon: Daemon) -> None:
    daemon.sh("source", "echo own >/dev/shm/state; echo own >/var/state")
    elsewhere = str(daemon.folder / "other.sock")
    command = [sys.executable, "-m", "ramet.cli", "serve", "--data-dir", str(daemon.data)]
    for socket, code in (
        (elsewhere, "data_folder_in_use"),
        (str(daemon.folder / "api.sock"), "socket_in_use"),
    ):
        second = subprocess.run([*command, "--socket", socket], capture_output=True, text=True, check=False)
        assert second.returncode != 0
        assert code in second.stderr
    _check_whole(daemon, "source", "own")
    _check_only(daemon, 1)


def test_a_daemon_that_ends_in_good_order_leaves_guests_and_comes_back_to_them(daemon: Daemon) -> None:
    daemon.sh("source", "echo last >/dev/shm/state; echo last >/var/state")

    daemon.stop()
    assert len(vmm_pids(daemon.data)) == 1
    daemon.start()

    _check_whole(daemon, "source", "last")


def test_a_daemon_told_to_stop_all_ends_its_guests_and_keeps_their_disks(daemon: Daemon) -> None:
    daemon.client.fork("source", "other")
    for name in ("source", "other"):
        daemon.sh(name, "echo $(cat /proc/sys/kernel/hostname) >/var/state; sync")
    daemon.stop()
    daemon.start(arguments=["--stop-all"])
    assert len(vmm_pids(daemon.data)) == 2  # It stops all when it ends, not when it begins.
    daemon.stop()

    assert vmm_pids(daemon.data) == []
    daemon.start()
    _check_only(daemon, 0, stopped=2)
    for name in ("source", "other"):
        assert daemon.client.get(name).state == "Stopped"
        daemon.client.start(name)
        assert daemon.sh(name, "cat /var/state") == f"{name}\n"
        daemon.client.delete(name)
    _check_only(daemon, 0)
