"""Every call of the API's description, asked in ways that schemathesis makes of it, few but always the same.

`./run fuzz api` asks for as long as one likes; here each call is asked often enough to meet each kind of
wrong value once.
"""

from collections.abc import Iterator
from contextlib import closing

import pytest

from fuzz.api import Api
from ramet.instance.fleet_types import InstanceView

EXAMPLE_COUNT = 6  # Of right and of wrong requests each.
SEED = 1

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # Schemathesis's own.
    pytest.mark.timeout(240),  # Half a minute on a host with nothing else to do.
]


@pytest.fixture(scope="module")
def api() -> Iterator[Api]:
    with closing(Api()) as api:
        yield api


def test_whatever_is_asked_is_answered_as_the_description_says(api: Api) -> None:
    labels = []
    for operation in api.operations():
        api.check(operation, EXAMPLE_COUNT, SEED)
        labels.append(operation.label)
    assert "POST /instances" in labels
    assert len(labels) > 15


def test_a_planted_bug_is_found(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object, **__: object) -> Iterator[InstanceView]:
        raise KeyError("planted")

    monkeypatch.setattr("tests.api.stand_in.StandInFleet.find", fail)
    (operation,) = (found for found in api.operations() if found.label == "GET /instances")
    with pytest.raises(Exception, match=r"planted|Server error|500"):
        api.check(operation, EXAMPLE_COUNT, SEED)
