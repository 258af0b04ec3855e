"""A host that has no memory for a capture: the fork is refused, and the source runs on."""

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ramet.client import ApiError
from tests.vm.daemon import Daemon, Leftovers, own_daemon
from tests.vm.images import IMAGE

pytestmark = pytest.mark.vm

GUEST_BYTES = 256 << 20


@pytest.fixture(scope="module")
def daemon(kernel_package: Path | None) -> Iterator[Daemon]:
    with own_daemon(kernel_package) as daemon:
        daemon.start()
        daemon.client.import_image(str(daemon.folder / "image"), IMAGE)
        daemon.boot("source")
        daemon.sh("source", "dd if=/dev/urandom of=/dev/shm/block bs=1M count=64 2>/dev/null")
        yield daemon


@pytest.fixture(autouse=True)
def source_is_well(daemon: Daemon) -> Iterator[None]:
    """Whatever a test does, its source runs on with its memory and can be forked; nothing else is left."""
    pid = daemon.pid_of(daemon.client.get("source").id)
    before = daemon.sh("source", "md5sum /dev/shm/block")
    yield
    assert daemon.pid_of(daemon.client.get("source").id) == pid
    assert daemon.sh("source", "md5sum /dev/shm/block") == before
    assert daemon.leftovers() == Leftovers(1, 1, 1, 1, 1, journal_count=0)
    daemon.client.fork("source", "after")
    assert daemon.sh("after", "md5sum /dev/shm/block") == before
    daemon.client.delete("after")


@contextmanager
def limited(pid: int, kind: int, most: int) -> Iterator[None]:
    """Bound a resource of a running process inside."""
    soft, hard = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (most, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, kind, (soft, hard))


def _address_space_bytes(pid: int) -> int:
    found = re.search(r"^VmSize:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


@pytest.mark.parametrize("kind", ["file", "mapping"])
def test_a_capture_that_gets_no_memory_is_refused(daemon: Daemon, kind: str) -> None:
    most = {
        "file": (resource.RLIMIT_FSIZE, GUEST_BYTES // 2),
        "mapping": (resource.RLIMIT_AS, _address_space_bytes(daemon.pid) + GUEST_BYTES - 1),
    }[kind]
    with limited(daemon.pid, *most), pytest.raises(ApiError) as refused:
        daemon.client.fork("source", "child")
    assert refused.value.error.code == "capture_refused"
    assert refused.value.error.remedy
