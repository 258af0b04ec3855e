"""What is really on the disk is counted in blocks."""

from pathlib import Path

from ramet.admission.report import Line, allocated_bytes


def test_blocks_are_counted_and_holes_are_not(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "dense").write_bytes(b"x" * (1 << 20))
    (tmp_path / "link").symlink_to(deep)
    assert 1 << 20 <= allocated_bytes(tmp_path) < 2 << 20
    assert allocated_bytes(tmp_path / "nowhere") == 0


def test_nothing_is_free_where_more_runs_than_is_admitted_now() -> None:
    assert Line(1, 1, 3, 1.0, "configured").available == 0
    assert Line(None, None, 3, 1.0, "unknown").available is None
