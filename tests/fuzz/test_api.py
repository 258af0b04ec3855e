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
SEQUENCE_COUNT = 90
STEP_COUNT = 12

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


def test_sequences_of_calls_are_answered_as_the_description_says(api: Api) -> None:
    """What an answer brought is asked for, changed, deleted and asked for again."""
    succeeded = api.check_sequences(SEQUENCE_COUNT, STEP_COUNT, always_the_same=True)
    on_one_thing = [label for label in succeeded if "{" in label]
    assert len(on_one_thing) > 10
    assert succeeded["DELETE /instances/{id}"]


def test_a_bug_that_only_a_sequence_meets_is_found(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instance that is there after it was deleted."""

    async def delete(_: object, ref: str) -> None:
        """Forget to."""

    monkeypatch.setattr("tests.api.stand_in.StandInFleet.delete", delete)
    with pytest.raises(Exception, match="deleted"):
        api.check_sequences(SEQUENCE_COUNT, STEP_COUNT, always_the_same=True)


def test_a_planted_bug_is_found(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object, **__: object) -> Iterator[InstanceView]:
        raise KeyError("planted")

    monkeypatch.setattr("tests.api.stand_in.StandInFleet.find", fail)
    (operation,) = (found for found in api.operations() if found.label == "GET /instances")
    with pytest.raises(Exception, match=r"planted|Server error|500"):
        api.check(operation, EXAMPLE_COUNT, SEED)
