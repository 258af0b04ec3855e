"""Logs are bounded in place and read while they are written."""

from pathlib import Path

import anyio
import pytest

from ramet.effects import logs
from ramet.effects.logs import bound_logs, read_logs

pytestmark = pytest.mark.anyio


def test_a_long_log_is_cut_in_place_to_its_newest_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "LOG_BYTES_MAX", 1000)
    monkeypatch.setattr(logs, "LOG_BYTES_KEPT", 100)
    (tmp_path / "i").mkdir()
    log = tmp_path / "i" / "output.log"
    with log.open("ab") as writer:  # As the VMM has it open.
        writer.write(b"".join(b"line %04d\n" % number for number in range(200)))
        writer.flush()
        assert bound_logs(tmp_path) == [log]
        writer.write(b"after the cut\n")
    lines = log.read_text().splitlines()
    assert lines[-2:] == ["line 0199", "after the cut"]
    assert 5 < len(lines) < 15
    assert bound_logs(tmp_path) == []


async def test_the_tail_is_the_last_lines(tmp_path: Path) -> None:
    (tmp_path / "output.log").write_bytes(b"".join(b"%d\r\n" % number for number in range(100_000)))
    found = [line async for line in read_logs(tmp_path, "app", 3, follow=False, is_alive=lambda: False)]
    assert found == ["99997", "99998", "99999"]


async def test_a_missing_log_is_empty(tmp_path: Path) -> None:
    assert [line async for line in read_logs(tmp_path, "vmm", 9, follow=False, is_alive=lambda: True)] == []


async def test_following_ends_with_the_instance_and_loses_no_line(tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    log.write_bytes(b"first\n")
    alive, found = [True], []

    async with anyio.create_task_group() as group:

        async def follow() -> None:
            async for line in read_logs(tmp_path, "app", 10, follow=True, is_alive=lambda: alive[0]):
                found.append(line)
                if line == "first":
                    with log.open("ab") as writer:
                        writer.write(b"second\nthird, with no end")
                    alive[0] = False

        group.start_soon(follow)
    assert found == ["first", "second", "third, with no end"]
