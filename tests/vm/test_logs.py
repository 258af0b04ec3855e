"""A guest that floods its log is live and well, and so is the disk of its host."""

import os
import time

import anyio
import pytest
from anyio import to_thread

from ramet.logs.rotation import LogBounds, rotated_files
from tests.vm.site import Children, Site

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

FLOOD_BYTES = int(os.environ.get("RAMET_TEST_FLOOD_BYTES", 1 << 30))
BLOCK_BYTES = 16 << 20
ASK_INTERVAL_S = 1.0
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
            longest = max(longest, *(path.stat().st_size for path in (log, *rotated_files(log))))
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
