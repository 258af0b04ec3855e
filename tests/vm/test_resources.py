"""How full a host is, told by a daemon with real guests, and by the one that comes after it."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.client import ApiError
from ramet.wire_api.instances import CreateInstance
from tests.net.namespaces import own_namespace
from tests.vm.daemon import Daemon
from tests.vm.images import IMAGE, write_image
from tests.vm.site import vmm_pids

pytestmark = pytest.mark.vm

MEMORY_BYTES = 256 << 20
OVERLAY_BYTES = 1 << 30


@pytest.fixture
def daemon(kernel_package: Path | None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """Return a running daemon with memory for four guests, in a namespace of its own."""
    folder = Path(tempfile.mkdtemp(prefix="rmt-", dir="/tmp"))
    write_image(folder / "image")
    if kernel_package is not None:
        monkeypatch.setenv("RAMET_KERNEL_PACKAGE", str(kernel_package))
    monkeypatch.setenv("RAMET_CAPACITY__MEMORY", "512MB")
    monkeypatch.setenv("RAMET_OVERSUBSCRIPTION__MEMORY", "2.0")
    daemon = Daemon(folder)
    with own_namespace():
        try:
            daemon.start()
            daemon.client.import_image(str(folder / "image"), IMAGE)
            yield daemon
            daemon.stop()
        finally:
            for pid in vmm_pids(folder):
                os.kill(pid, 9)
            shutil.rmtree(folder)


def test_instances_and_captures_are_counted_alike_before_and_after_a_restart(daemon: Daemon) -> None:
    client = daemon.client
    client.create(CreateInstance(name="web", image=IMAGE, size="256MB", overlay_size="1GB", vcpus=1))
    outcomes = client.fork_many("web", 3, "kid")
    errors = [outcome.error for outcome in outcomes.forks]
    assert [error and error.code for error in errors] == [None, None, "insufficient_resources"]
    before = client.resources()
    assert (before.memory.effective_limit, before.memory.available) == (1 << 30, 0)
    assert (before.captures.count, before.captures.memory_bytes) == (1, MEMORY_BYTES)
    assert (before.cpu.allocated, before.disk.allocated) == (3, 3 * OVERLAY_BYTES)
    assert (before.endpoints.allocated, before.taps) == (3, 3)
    assert before.disk_breakdown.images_bytes > 0
    assert 0 < before.disk_breakdown.overlays_bytes < OVERLAY_BYTES
    daemon.stop()
    daemon.start()
    after = client.resources()
    assert (after.cpu, after.memory, after.disk) == (before.cpu, before.memory, before.disk)
    assert (after.captures, after.endpoints, after.taps) == (before.captures, before.endpoints, before.taps)
    with pytest.raises(ApiError, match="not enough memory for instance more") as refused:
        client.create(CreateInstance(name="more", image=IMAGE, size="256MB", vcpus=1))
    assert (refused.value.status, refused.value.error.code) == (409, "insufficient_resources")
    for name in ("kid-1", "kid-2", "web"):
        client.delete(name)
    empty = client.resources()
    assert (empty.cpu.allocated, empty.memory.allocated, empty.captures.count) == (0, 0, 0)
