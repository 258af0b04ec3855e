"""Time is counted to the state in which it passed, all of it, and none twice."""

import json
from dataclasses import asdict

from hypothesis import given
from hypothesis import strategies as st

from ramet.core.phases import Phases

STATES = st.sampled_from(["Running", "Standby", "Stopped", "Paused"])
STEPS = st.lists(st.tuples(STATES, st.integers(0, 10_000_000)))


def test_time_counts_to_the_state_it_passed_in() -> None:
    phases = Phases("Created", 100.0).moved("Running", 101.5).moved("Standby", 111.5).moved("Running", 200.0)
    assert phases.durations_ms(200.25) == {"Created": 1500, "Running": 10_250, "Standby": 88_500}
    assert (phases.state, phases.since) == ("Running", 200.0)


@given(STEPS)
def test_all_time_is_counted_and_none_twice(steps: list[tuple[str, int]]) -> None:
    at, phases = 0, Phases("Created", 0.0)
    for state, later_ms in steps:
        at += later_ms
        phases = phases.moved(state, at / 1000)
        assert sum(phases.durations_ms(at / 1000).values()) == at
    assert Phases.from_dict(json.loads(json.dumps(asdict(phases)))) == phases


def test_a_state_that_stays_goes_on_and_a_clock_that_goes_back_takes_nothing() -> None:
    phases = Phases("Running", 100.0)
    assert phases.moved("Running", 150.0) is phases
    assert phases.moved("Stopped", 90.0).durations_ms(95.0) == {"Running": 0, "Stopped": 5000}
