"""A log that outgrows its bound moves on, while its writer goes on writing to the same descriptor."""

from pathlib import Path

import pytest

from ramet.logs.rotation import LogBounds, rotate, rotated_files, sweep

BOUNDS = LogBounds(file_bytes_max=1000, rotated_count=2)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "i").mkdir()
    return tmp_path / "i" / "output.log"


def test_a_full_log_moves_whole_and_its_writer_goes_on_in_an_empty_one(log: Path) -> None:
    with log.open("ab", buffering=0) as writer:  # As the VMM has it open.
        writer.write(b"x" * 1000 + b"\n")
        sweep(log.parents[1], LogBounds(1000, 2))
        writer.write(b"after\n")
    assert log.read_bytes() == b"after\n"
    (moved,) = rotated_files(log)
    assert b"dropped" in moved.read_bytes()  # One byte too long: its oldest part is dropped, and that told.
    assert moved.read_bytes().endswith(b"x\n")


def test_what_fits_is_not_touched(log: Path) -> None:
    log.write_bytes(b"x" * 1000)
    assert sweep(log.parents[1], BOUNDS) == 1000
    assert rotated_files(log) == []


def test_as_many_rotated_files_are_kept_as_were_asked_for_newest_first(log: Path) -> None:
    for number in range(5):
        log.write_bytes(b"%d" % number * 1000)
        rotate(log, BOUNDS)
    assert [path.read_bytes()[:1] for path in rotated_files(log)] == [b"4", b"3"]
    assert sorted(path.name for path in log.parent.iterdir()) == [
        "output.log",
        "output.log.1",
        "output.log.2",
    ]


def test_fewer_files_than_before_are_kept_after_a_change_of_settings(log: Path) -> None:
    for number in range(3):
        log.write_bytes(b"%d" % number * 1000)
        rotate(log, BOUNDS)
    log.write_bytes(b"9" * 1000)
    rotate(log, LogBounds(1000, 1))
    assert [path.read_bytes()[:1] for path in rotated_files(log)] == [b"9"]


def test_what_is_dropped_is_told_with_its_size(log: Path) -> None:
    log.write_bytes(b"a" * 2500 + b"b" * 1000)
    rotate(log, BOUNDS)
    (moved,) = rotated_files(log)
    assert moved.read_bytes() == b"[ramet: 2500 bytes of this log were dropped here]\n" + b"b" * 1000


def test_a_flood_leaves_bounded_files(log: Path) -> None:
    bounds, block = LogBounds(512 << 10, 2), b"0123456789abcde\n" * (1 << 12)
    longest = 0
    with log.open("ab", buffering=0) as writer:
        for _ in range(1024):
            writer.write(block)
            sweep(log.parents[1], bounds)
            longest = max(longest, sum(path.stat().st_size for path in log.parent.iterdir()))
    assert longest <= 3 * bounds.file_bytes_max + 2 * len(block)
    assert len(rotated_files(log)) == 2


def test_folders_without_logs_and_files_between_them_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "stray").write_text("")
    assert sweep(tmp_path, BOUNDS) == 0


def test_a_log_that_leads_elsewhere_is_left_alone_and_the_others_are_bounded(log: Path) -> None:
    elsewhere = log.parents[1] / "elsewhere"
    elsewhere.write_bytes(b"x" * 5000)
    log.with_name("console.log").symlink_to(elsewhere)
    log.write_bytes(b"x" * 1001)
    sweep(log.parents[1], BOUNDS)
    assert len(elsewhere.read_bytes()) == 5000
    assert log.read_bytes() == b""
