"""Logs are read while they are written and rotated, and no line is lost or told twice."""

import tempfile
from pathlib import Path

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ramet.logs import reading
from ramet.logs.reading import FELL_BEHIND, Follower, read_end, read_logs
from ramet.logs.rotation import LogBounds, rotate

BOUNDS = LogBounds(file_bytes_max=1000, rotated_count=2)


def append(log: Path, text: str) -> None:
    with log.open("a") as writer:
        writer.write(text)


def rest_of(follower: Follower) -> list[str]:
    found = []
    while (lines := follower.read_more()) or follower.has_more:
        found += lines
    return found


@pytest.mark.anyio
async def test_the_tail_is_the_last_lines(tmp_path: Path) -> None:
    (tmp_path / "output.log").write_bytes(b"".join(b"%d\r\n" % number for number in range(100_000)))
    found = [line async for line in read_logs(tmp_path, "app", 3, follow=False, is_alive=lambda: False)]
    assert found == ["99997", "99998", "99999"]


@pytest.mark.anyio
async def test_a_missing_log_is_empty(tmp_path: Path) -> None:
    assert [line async for line in read_logs(tmp_path, "vmm", 9, follow=False, is_alive=lambda: True)] == []


@pytest.mark.anyio
async def test_following_ends_with_the_instance_and_loses_no_line(tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    log.write_bytes(b"first\n")
    alive, found = [True], []

    async with anyio.create_task_group() as group:

        async def follow() -> None:
            async for line in read_logs(tmp_path, "app", 10, follow=True, is_alive=lambda: alive[0]):
                found.append(line)
                if line == "first":
                    append(log, "second\n")
                    rotate(log, BOUNDS)
                    append(log, "third, with no end")
                    alive[0] = False

        group.start_soon(follow)
    assert found == ["first", "second", "third, with no end"]


@pytest.mark.anyio
async def test_both_logs_of_the_vmm_are_followed(tmp_path: Path) -> None:
    (tmp_path / "console.log").write_text("kernel\n")
    alive, found = [True], []
    async for line in read_logs(tmp_path, "vmm", 10, follow=True, is_alive=lambda: alive[0]):
        found.append(line)
        if line == "kernel":
            append(tmp_path / "console.log", "more\n")
            append(tmp_path / "vmm.log", "qemu\n")
            alive[0] = False
    assert sorted(found) == ["kernel", "more", "qemu"]


def test_the_tail_reaches_into_rotated_files(tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    for text in ("one\ntwo\nthr", "ee\nfour\n", "five\nsix"):
        append(log, text)
        if text != "five\nsix":
            rotate(log, BOUNDS)
    follower = Follower(log)
    assert follower.read_tail(5) == ["two", "three", "four", "five"]
    append(log, " and more\n")
    assert rest_of(follower) == ["six and more"]


def test_the_end_of_a_log_reaches_into_rotated_files(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    append(log, "the exit line")
    rotate(log, BOUNDS)
    append(log, "!")
    assert read_end(log, 10) == b" exit line!"[-10:]
    assert read_end(tmp_path / "none" / "console.log", 10) == b""


def test_a_reader_that_falls_behind_is_told(tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    append(log, "old\n")
    rotate(log, BOUNDS)
    follower = Follower(log)
    assert follower.read_tail(9) == ["old"]
    for number in range(4):
        append(log, f"{number}\n")
        rotate(log, BOUNDS)
    append(log, "now\n")
    assert rest_of(follower) == [FELL_BEHIND, "2", "3", "now"]


def test_a_reader_is_told_what_was_dropped_and_goes_on_behind_it(tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    append(log, "seen\n")
    follower = Follower(log)
    assert follower.read_tail(9) == ["seen"]
    append(log, "x" * 2000 + "\nkept\n")
    rotate(log, LogBounds(5, 2))
    append(log, "now\n")
    assert rest_of(follower) == ["[ramet: 2006 bytes of this log were dropped here]", "kept", "now"]


def test_a_line_without_end_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LINE_BYTES_MAX", 300_000)
    log = tmp_path / "output.log"
    follower = Follower(log)
    assert follower.read_tail(1) == []
    append(log, "x" * 1_000_000 + "\n")
    pieces = rest_of(follower)
    assert len(pieces) > 1
    assert sum(map(len, pieces)) == 1_000_000


STEPS = st.lists(st.sampled_from(["write", "write half", "rotate", "read"]), max_size=40)


@settings(deadline=None)
@given(STEPS)
def test_no_line_is_lost_or_told_twice_whenever_a_log_is_rotated(steps: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log, written, found, count = Path(folder) / "output.log", "", list[str](), 0
        append(log, "")
        follower = Follower(log)
        assert follower.read_tail(0) == []
        for step in [*steps, "read"]:
            if step == "rotate":
                rotate(log, LogBounds(1 << 20, 100))
            elif step == "read":
                found += rest_of(follower)
            else:
                count += 1
                text = f"line {count}" + ("\n" if step == "write" else "")
                append(log, text)
                written += text
        assert "\n".join([*found, follower.rest.decode()]) == written
