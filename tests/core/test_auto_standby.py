"""Whether traffic wakes an instance, and how that is stored."""

import json
from dataclasses import asdict

import pytest

from ramet.core.auto_standby import AutoStandby


@pytest.mark.parametrize(
    ("policy", "by_default", "is_woken"),
    [
        (AutoStandby(True, 60.0), False, False),
        (AutoStandby(True, 60.0), True, True),
        (AutoStandby(False, 60.0), True, False),
        (AutoStandby(True, 60.0, wakes_on_traffic=False), True, False),
        (AutoStandby(False, 60.0, wakes_on_traffic=True), False, True),
    ],
)
def test_what_an_instance_says_comes_before_the_daemons_default(
    policy: AutoStandby, by_default: bool, is_woken: bool
) -> None:
    assert policy.is_woken_by_traffic(by_default=by_default) == is_woken


@pytest.mark.parametrize("wakes", [None, True, False])
def test_it_is_stored_with_the_rest(wakes: bool | None) -> None:
    policy = AutoStandby(True, 60.0, ("10.0.0.0/8",), (22,), wakes)
    assert AutoStandby.from_dict(json.loads(json.dumps(asdict(policy)))) == policy


def test_a_policy_stored_before_there_was_such_a_thing_is_read() -> None:
    raw = {"is_enabled": True, "idle_timeout_s": 60.0, "ignored_sources": [], "ignored_ports": []}
    assert AutoStandby.from_dict(raw) == AutoStandby(True, 60.0)
