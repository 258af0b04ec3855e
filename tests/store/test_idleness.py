"""What one daemon leaves and the next one takes."""

from pathlib import Path

import pytest

from ramet.core.auto_standby import LeftIdle
from ramet.core.ids import InstanceId
from ramet.store.idleness import IdleFile

LEFT = {InstanceId("a"): LeftIdle(1.5, 7.0), InstanceId("b"): LeftIdle(0.0)}


def test_what_is_left_is_taken_once(tmp_path: Path) -> None:
    file = IdleFile(tmp_path / "idle.json")
    assert file.take() == {}
    file.leave(LEFT)
    assert file.take() == LEFT
    assert file.take() == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"a": 7}',
        '{"a": {"idle_s": 7}}',
        '{"a": {"idle_s": "7", "hold_until": null}}',
        '{"a": {"idle_s": -1, "hold_until": null}}',
        '{"a": {"idle_s": NaN, "hold_until": null}}',
        '{"a": {"idle_s": 1, "hold_until": Infinity}}',
        '{"a": {"idle_s": 1, "hold_until": "soon"}}',
    ],
)
def test_of_a_damaged_file_all_times_begin_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "idle.json"
    path.write_text(text)
    assert IdleFile(path).take() == {}
    assert not path.exists()


def test_a_disk_that_takes_nothing_is_no_failure(tmp_path: Path) -> None:
    IdleFile(tmp_path / "nowhere" / "idle.json").leave(LEFT)
