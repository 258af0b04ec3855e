"""A disk that is really full: what needs room is refused, what runs goes on, and room mends everything."""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ramet.client import ApiError
from ramet.wire_api.errors import Error
from tests.vm.daemon import Daemon, Leftovers, own_daemon
from tests.vm.images import IMAGE

pytestmark = pytest.mark.vm

DISK_BYTES = 3 << 30
ROOMS_BYTES = [n << 14 for n in (0, 1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256, 512)]
CAPACITY = {"RAMET_CAPACITY__DISK": "100GB"}
"""Said, since what a daemon that starts on the full disk finds is as small as that."""
SETTLE_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.05
WANT_OF_ROOM = (
    "state_unwritable",
    "instance_folder_unwritable",
    "disk_layer_broken",
    "guest_starved",
)


class Disk:
    """A file system of its own under the data folder, whose size says how much room there is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        options = f"size={DISK_BYTES},mode=700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)

    def fill(self, *, but_bytes: int = 0) -> None:
        """Leave room for `but_bytes` and not a page more."""
        until = time.monotonic() + SETTLE_TIMEOUT_S
        while True:
            found = os.statvfs(self.folder)
            try:
                self._resize((found.f_blocks - found.f_bfree) * found.f_frsize + but_bytes)
            except subprocess.CalledProcessError:  # Somebody has written meanwhile: it is too small.
                assert time.monotonic() < until
            else:
                return

    def empty(self) -> None:
        self._resize(DISK_BYTES)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)

    def _resize(self, size_bytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size_bytes}", self.folder], check=True)


class Place:
    """A daemon on a small disk, with one running instance, "source"."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon, self.disk = daemon, Disk(daemon.data)

    def refused(self, work: Callable[[], object]) -> Error | None:
        """Return how the server refuses `work`, None if it does not; it must say what to do about it."""
        refusal = None
        try:
            work()
        except ApiError as error:
            refusal = error.error
        if refusal is not None:
            assert refusal.code in WANT_OF_ROOM, refusal
            assert refusal.remedy, refusal
        return refusal

    def check_only(self, count: int) -> None:
        """Assert that soon `count` running instances are all there is."""
        expected = Leftovers(count, count, count, count, count, journal_count=0)
        until = time.monotonic() + SETTLE_TIMEOUT_S
        while (found := self.daemon.leftovers()) != expected:
            assert time.monotonic() < until, found
            time.sleep(POLL_INTERVAL_S)

    def rooms(self) -> Iterator[None]:
        """Leave more and more room on the disk, beginning with none."""
        for room_bytes in ROOMS_BYTES:
            self.disk.fill(but_bytes=room_bytes)
            yield
        raise AssertionError(f"{ROOMS_BYTES[-1]} bytes are not enough")


@pytest.fixture(scope="module")
def place(kernel_package: Path | None) -> Iterator[Place]:
    with own_daemon(kernel_package) as daemon:
        place = Place(daemon)
        try:
            daemon.start(environment=CAPACITY)
            daemon.client.import_image(str(daemon.folder / "image"), IMAGE)
            daemon.boot("source")
            yield place
            place.disk.empty()
            daemon.client.delete("source")
            daemon.stop()
        finally:
            place.disk.unmount()


@pytest.fixture(autouse=True)
def source_is_well(place: Place) -> Iterator[None]:
    """Whatever a test does, its source runs on and it leaves nothing; with room, all works."""
    pid = place.daemon.pid_of(place.daemon.client.get("source").id)
    yield
    place.disk.empty()
    assert place.daemon.pid_of(place.daemon.client.get("source").id) == pid
    assert place.daemon.sh("source", "echo now >/var/now; sync; cat /var/now") == "now\n"
    place.daemon.client.fork("source", "after")
    assert place.daemon.sh("after", "cat /var/now") == "now\n"
    place.daemon.client.delete("after")
    place.check_only(1)


def test_a_fork_is_refused_at_whatever_step_the_disk_becomes_full(place: Place) -> None:
    codes = []
    for _ in place.rooms():
        error = place.refused(lambda: place.daemon.client.fork("source", "child"))
        if error is None:
            break
        codes.append(error.code)
        place.check_only(1)
    assert codes
    place.disk.fill()
    place.daemon.client.delete("child")


def test_a_create_is_refused_at_whatever_step_the_disk_becomes_full(place: Place) -> None:
    codes = []
    for _ in place.rooms():
        error = place.refused(lambda: place.daemon.boot("other"))
        if error is None:
            break
        codes.append(error.code)
        place.check_only(1)
    assert codes
    place.disk.fill()
    place.daemon.client.delete("other")


def test_a_guest_that_writes_to_a_full_disk_waits_and_loses_nothing(place: Place) -> None:
    begin = place.daemon.log_bytes
    place.disk.fill()
    written = threading.Thread(
        target=place.daemon.sh, args=("source", "dd if=/dev/zero bs=1M count=20 >/var/big; sync")
    )
    written.start()
    place.daemon.wait_for_log("guest_waits_for_room", after=begin)
    error = place.refused(lambda: place.daemon.client.fork("source", "child"))
    assert error is not None
    place.disk.empty()
    written.join(SETTLE_TIMEOUT_S)
    assert not written.is_alive()
    assert place.daemon.sh("source", "wc -c </var/big; rm /var/big").strip() == str(20 << 20)
    place.daemon.wait_for_log("guest_goes_on", after=begin)


def test_a_guest_that_waits_for_room_can_be_stopped_deleted_and_found_again(place: Place) -> None:
    daemon = place.daemon
    for name in ("stopped", "deleted", "kept"):
        daemon.client.fork("source", name)
    place.disk.fill()
    for name in ("stopped", "deleted", "kept"):
        daemon.sh(name, "(dd if=/dev/zero bs=1M count=20 >/var/big; sync) >/dev/null 2>&1 &")
    assert daemon.client.stop("stopped").state == "Stopped"
    daemon.client.delete("deleted")
    daemon.kill()
    daemon.start(environment=CAPACITY)
    assert daemon.client.get("kept").state == "Running"
    place.disk.empty()
    assert (
        daemon.sh("kept", "until [ $(wc -c </var/big) = 20971520 ]; do sleep 0.1; done; echo whole")
        == "whole\n"
    )
    daemon.client.start("stopped")
    assert daemon.sh("stopped", "cat /proc/sys/kernel/hostname") == "stopped\n"
    for name in ("stopped", "kept"):
        daemon.client.delete(name)


def test_a_daemon_starts_on_a_full_disk_and_finds_what_runs(place: Place) -> None:
    place.daemon.kill()
    place.disk.fill()
    place.daemon.start(environment=CAPACITY)
    assert place.daemon.sh("source", "cat /proc/sys/kernel/hostname") == "source\n"
