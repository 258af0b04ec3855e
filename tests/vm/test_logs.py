"""A guest that floods its log is live and well, and so is the disk of its host."""

import os
import shutil
import tempfile
import time
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from ramet.logs.rotation import LogBounds, held, rotated_files
from ramet.wire_api.instances import CreateInstance
from tests.net.namespaces import own_namespace
from tests.vm.daemon import Daemon
from tests.vm.images import IMAGE, write_image
from tests.vm.site import Children, Site, vmm_pids

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

FLOOD_BYTES = int(os.environ.get("RAMET_TEST_FLOOD_BYTES", 1 << 30))
BLOCK_BYTES = 16 << 20
ASK_INTERVAL_S = 1.0
ROTATION_TIMEOUT_S = 60.0
LINE = "012345678901234567890123456789012345678901234567890123456789012\n"  # Fits the block evenly.
BOUNDS = LogBounds()  # The daemon's defaults.


async def test_a_flood_of_output_leaves_bounded_files_and_a_guest_that_answers(
    site: Site, source: str, children: Children
) -> None:
    await children.fork(source, "flooding")
    log = site.folder / "instances" / site.id_of("flooding") / "output.log"
    assert not log.exists() or log.stat().st_size == 0  # A fork's log begins fresh.
    # The workload's own way out: what else it has written goes there, too.
    # Made once: under emulation, `yes` is slower than the way out.
    flood = (
        f"out=/proc/$(pidof nc)/fd/1; yes {LINE.strip()} | head -c {BLOCK_BYTES} >/dev/shm/block; n=0; "
        f"while [ $n -lt {FLOOD_BYTES // BLOCK_BYTES} ]; do cat /dev/shm/block >$out; n=$((n+1)); done; "
        "rm /dev/shm/block; echo END >$out"
    )
    longest, answers, began = 0, 0, time.monotonic()
    async with anyio.create_task_group() as group:
        done = anyio.Event()

        async def write() -> None:
            result = await site.run("flooding", "sh", "-ec", flood, timeout_s=280)
            assert result.exit_code == 0, result
            done.set()

        group.start_soon(write)
        while not done.is_set():
            assert await site.sh("flooding", "echo still here") == "still here\n"
            answers += 1
            longest = max(longest, await to_thread.run_sync(_longest, log))
            with anyio.move_on_after(
                ASK_INTERVAL_S
            ):  # Its one processor is to write, and not only to answer.
                await done.wait()
    print(f"{FLOOD_BYTES} bytes in {time.monotonic() - began:.1f} s, {answers} answers, longest {longest}")
    assert answers > 0
    assert longest < 2 * BOUNDS.file_bytes_max
    assert len(rotated_files(log)) <= BOUNDS.rotated_count
    assert await site.sh("flooding", "echo alive") == "alive\n"
    lines = [line async for line in site.fleet.logs("flooding", source="app", tail=3, follow=False)]
    assert lines[-1] == "END"
    assert lines[0] == LINE.strip()


async def test_what_was_done_to_an_instance_is_in_its_log(
    site: Site, source: str, children: Children
) -> None:
    await children.fork(source, "noted")
    await site.fleet.stop("noted")
    own = [line async for line in site.fleet.logs("noted", source="hypeman", tail=100, follow=False)]
    assert f"forked_from={site.id_of(source)}" in own[0]
    assert any("Running pid=" in line for line in own)
    assert "Stopped" in own[-1]
    sources = [line async for line in site.fleet.logs(source, source="hypeman", tail=100, follow=False)]
    assert any("forked child=noted" in line for line in sources)
    folder = site.folder / "instances" / site.id_of("noted")
    await site.fleet.delete("noted")
    assert not await to_thread.run_sync(folder.exists)


def test_logs_are_bounded_while_no_daemon_runs(
    kernel_package: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAMET_LOGGING__MAX_SIZE", "1MB")
    if kernel_package is not None:
        monkeypatch.setenv("RAMET_KERNEL_PACKAGE", str(kernel_package))
    folder = Path(tempfile.mkdtemp(prefix="rmt-", dir="/tmp"))
    write_image(folder / "image")
    daemon = Daemon(folder)
    with own_namespace():
        try:
            daemon.start()
            daemon.client.import_image(str(folder / "image"), IMAGE)
            body = CreateInstance(
                "flooding", IMAGE, size="256MB", overlay_size="1GB", cmd=("yes", LINE.strip())
            )
            log = daemon.data / "instances" / daemon.client.create(body).id / "output.log"
            daemon.kill()
            longest = max(_sizes_until_rotated(log) for _ in range(3))
            assert longest < 256 << 20  # What a guest writes between two looks is all that comes on top.
            daemon.start()
            assert daemon.sh("flooding", "echo alive") == "alive\n"
            lines = list(daemon.client.logs("flooding", tail=3))
            assert lines[0] == LINE.strip()
            daemon.client.delete("flooding")
            assert not log.parent.exists()
            daemon.stop()
        finally:
            for pid in vmm_pids(folder):
                os.kill(pid, 9)
            shutil.rmtree(folder)


def _longest(log: Path) -> int:
    """Return the size of the longest file of a log."""
    with held(log.parent, alone=False):
        return max(path.stat().st_size for path in (log, *rotated_files(log)))


def _sizes_until_rotated(log: Path) -> int:
    """Wait until a log is rotated once more; return the greatest size it had meanwhile."""
    before, longest, until = _newest_rotated(log), 0, time.monotonic() + ROTATION_TIMEOUT_S
    while _newest_rotated(log) == before:
        longest = max(longest, log.stat().st_size)
        assert time.monotonic() < until
        time.sleep(0.01)
    return longest


def _newest_rotated(log: Path) -> tuple[int, int] | None:
    try:
        found = rotated_files(log)[0].stat()
    except (IndexError, FileNotFoundError):
        return None
    return found.st_ino, found.st_mtime_ns
