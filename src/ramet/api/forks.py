"""Forks as requests ask for them and as answers tell of them, whatever they are made of."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from fastapi import Response
from pydantic import TypeAdapter

from ramet.api.asked import check_name
from ramet.api.errors import answer, status_of, to_wire
from ramet.api.facts import HostFacts
from ramet.api.shown import to_fork_result, to_instance
from ramet.core.errors import Invalid, RametError
from ramet.core.spec import State
from ramet.instance import remedies
from ramet.instance.fleet_types import ForkOutcome, InstanceView, WrongState
from ramet.wire_api import instances as wire
from ramet.wire_api.errors import Error

FORKABLE: Final = frozenset({State.RUNNING, State.STANDBY, State.STOPPED})

_FORKS: Final = TypeAdapter(wire.ForkManyResult)


def names_of(body: wire.ForkMany) -> Sequence[str]:
    """Return what the children are to be called.

    Raises:
        Invalid: they are none, too many, or told twice.
        InvalidName: one of them is no name.
    """
    if body.names is not None:
        if body.count is not None or body.name_prefix is not None:
            raise Invalid("names are given, and so is count or name_prefix", remedy="leave one out")
        _check_count("names", len(body.names))
        if len(set(body.names)) != len(body.names):
            raise Invalid("A name is there twice in names", field="names")
        for name in body.names:
            check_name(name)
        return body.names
    for field in ("count", "name_prefix"):
        if getattr(body, field) is None:
            raise Invalid(f"The field {field!r} is missing", remedy="give it, or names", field=field)
    assert body.count is not None
    _check_count("count", body.count)
    names = [f"{body.name_prefix}-{number}" for number in range(1, body.count + 1)]
    check_name(names[-1])
    return names


def check_source(source: InstanceView, *, from_running: bool) -> None:
    """Raise WrongState if `source` cannot be forked as it is."""
    name, state = source.record.name, source.record.state
    if state not in FORKABLE:
        raise WrongState(
            f"{name} is {state}, and only an instance that runs, sleeps or is stopped can be forked",
            remedy=remedies.to_run(source.record),
            state=state.value,
        )
    if state is State.RUNNING and not from_running:
        raise WrongState(
            f"{name} is Running, and the request does not allow to fork it so",
            remedy="set from_running to true; the source goes on running",
            state=state.value,
        )


def answer_one(outcomes: Sequence[ForkOutcome], facts: HostFacts) -> wire.Instance:
    """Return the only child, or raise what befell it."""
    (outcome,) = outcomes
    if outcome.error is not None:
        raise outcome.error
    assert outcome.view is not None
    return to_instance(outcome.view, facts, outcome.timings_ms)


def answer_many(outcomes: Sequence[ForkOutcome], facts: HostFacts) -> Response:
    """Return the answer that tells what became of each child; if all failed, the first error."""
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    if len(errors) == len(outcomes):
        return _all_failed(errors)
    results = tuple(to_fork_result(outcome, facts) for outcome in outcomes)
    result = wire.ForkManyResult(results, len(outcomes) - len(errors))
    content = _FORKS.dump_json(result)
    return Response(content, status_code=HTTPStatus.CREATED, media_type="application/json")


def _all_failed(errors: list[RametError]) -> Response:
    first = to_wire(errors[0])
    message = f"None of the {len(errors)} forks could be made; the first: {first.message}"
    error = Error(first.code, message, first.details, first.inner_error, first.remedy, first.fields)
    return answer(status_of(errors[0]), error)


def _check_count(field: str, count: int) -> None:
    if not 1 <= count <= wire.FORK_COUNT_MAX:
        told = f"count is {count}" if field == "count" else f"{field} are {count}"
        raise Invalid(f"{told}, and must be from 1 to {wire.FORK_COUNT_MAX}", field=field)
