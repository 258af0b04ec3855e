"""The figures of a burst, its table, and its picture."""

import json
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from ramet.cli.figures import Figures, by_phase, percentile, phase_rows, read_metric
from ramet.cli.picture import Panel, draw, segments

CHILD = {
    "folder": 1.0,
    "network": 2.0,
    "capture": 100.0,
    "disk": 1.0,
    "vmm_start_wait": 50.0,
    "vmm_start": 60.0,
    "load": 20.0,
    "identify": 70.0,
    "confirm": 90.0,
    "since_capture": 210.0,
    "source_pause": 20.0,
    "total": 320.0,
}


@pytest.mark.parametrize(
    ("share", "found"), [(0.0, 1.0), (0.04, 1.0), (0.5, 13.0), (0.95, 24.0), (0.96, 24.0), (1.0, 25.0)]
)
def test_a_percentile_is_the_nearest_rank(share: float, found: float) -> None:
    assert percentile([float(n) for n in range(25, 0, -1)], share) == found


def test_figures_of_one_burst() -> None:
    assert Figures.of(4, [3.0, 1.0, 2.0]) == Figures(4, 3, 3.0, 2.0, 2.0, 3.0, 3.0)
    assert Figures.of(4, []) == Figures(4, 0, None, None, None, None, None)


def test_the_median_of_rounds_tells_the_worst_rounds_successes() -> None:
    rounds = [Figures.of(2, [1.0, 9.0]), Figures.of(2, []), Figures.of(2, [3.0]), Figures.of(2, [2.0, 2.0])]
    assert Figures.median(rounds) == Figures(2, 0, 3.0, 3.0, 2.0, 3.0, 3.0)


def test_phases_come_in_their_order_and_others_after_them() -> None:
    children = [{"other": 5.0, "load": 2.0}, {"load": 4.0, "folder": 1.0}]
    found = by_phase(children)
    assert list(found) == ["folder", "load", "other"]
    assert (found["load"].mean_s, found["load"].p50_s, found["load"].max_s) == (0.003, 0.002, 0.004)


def test_waiting_and_working_stand_side_by_side() -> None:
    rows = {row[0]: row[1:] for row in phase_rows(by_phase([CHILD]))}
    assert rows["phase"] == ("wait mean", "wait p95", "work mean", "work p95")
    assert rows["vmm_start"] == ("50.0", "50.0", "60.0", "60.0")
    assert rows["capture"] == ("100.0", "100.0", "", "")
    assert rows["load"] == ("", "", "20.0", "20.0")
    assert "vmm_start_wait" not in rows


def test_a_wait_without_its_work_has_a_row_of_its_own() -> None:
    assert [row[0] for row in phase_rows(by_phase([{"confirm_wait": 1.0}]))] == ["phase", "confirm_wait"]


def test_a_childs_phases_end_at_its_acknowledgement_without_gaps() -> None:
    laid = segments(CHILD)
    assert [segment.phase for segment in laid] == [
        *("folder", "network", "capture", "disk"),
        *("vmm_start_wait", "vmm_start", "load", "identify"),
    ]
    assert laid[-1].end_s == 0.21
    for former, latter in pairwise(laid):
        assert former.end_s == pytest.approx(latter.start_s)
    assert laid[0].start_s == pytest.approx(0.21 - 0.304)


def test_the_picture_has_a_rectangle_for_each_phase_on_one_scale() -> None:
    later = {**CHILD, "identify": 170.0, "since_capture": 310.0}
    picture = draw([Panel("a <burst>", (segments(later), segments(CHILD))), Panel("floor", ())])
    root = ElementTree.fromstring(picture)
    spoken = [
        (node.findtext("{*}title"), float(node.attrib["x"]), float(node.attrib["y"]))
        for node in root.iter("{http://www.w3.org/2000/svg}rect")
        if node.find("{*}title") is not None
    ]
    assert len(spoken) == 16
    first, second = (
        next(place for place in spoken if place[0] == f"identify {ms} ms") for ms in ("70.0", "170.0")
    )
    assert first[2] < second[2], "who was done first stands on top"
    assert first[1] == second[1], "both began 140 ms after the capture"
    assert "a <burst>" in [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]


def test_a_metric_is_found_by_its_whole_name() -> None:
    text = "# HELP cpu_total x\ncpu_total_more 1.0\ncpu_total 2.5\n"
    assert read_metric(text, "cpu_total") == 2.5
    assert read_metric(text, "cpu") is None


def test_figures_are_json() -> None:
    from ramet.wire_api.codec import encode

    assert json.loads(json.dumps(encode(Figures.of(1, [0.5])))) == {
        **{"count": 1, "succeeded": 1, "wall_s": 0.5, "mean_s": 0.5},
        **{"p50_s": 0.5, "p95_s": 0.5, "max_s": 0.5},
    }
