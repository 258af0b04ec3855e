"""The API against its description: what schemathesis makes of it is answered as it says, and never by 500.

The app runs in this process over the fleet that its tests stand on; nothing listens and no VM starts.
"""

import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from http import HTTPStatus
from typing import Any, Final

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky, Unsatisfiable
from schemathesis import Case, GenerationMode, Response
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from ramet.api import create_app
from ramet.store.answers import AnswerStore
from tests.api.stand_in import StandInFleet, stand_in_parts
from tests.api.stand_in_images import StandInCatalog
from tests.api.stand_in_schedules import StandInSchedules
from tests.api.stand_in_snapshots import StandInSnapshots
from tests.api.stand_in_volumes import StandInVolumes

NOT_SUPPORTED: Final = 501  # An answer of ours, though schemathesis counts it among the server's errors.
EXAMPLES_A_ROUND: Final = 50
IMAGE: Final = "docker.io/library/alpine:latest"
NAMES: Final = ("one", "two", "three", "four")
_ID: Final = re.compile(r"[a-z][a-z0-9]{23}")
MET: Final = {
    "name": NAMES,
    "name_prefix": NAMES,
    "kind": ("Standby", "Stopped"),
    "target_state": ("Running",),
}
"""What fields of bodies are made to say, so that calls meet."""
STEP_COUNT: Final = 12
EXISTING: Final = {"id": "src", "snapshot_id": "snap", "name": IMAGE}  # By the parameter of the path.

AnyCase = Case[Any]

_CHECKS: Final[list[CheckFunction]] = [
    content_type_conformance,
    response_headers_conformance,
    status_code_conformance,
    unsupported_method,
]


def _checks(response: Response) -> Iterator[CheckFunction]:
    yield from _CHECKS
    if response.status_code != NOT_SUPPORTED:
        yield not_a_server_error
    if response.headers.get("content-type") != ["text/event-stream; charset=utf-8"]:
        # Of events it wants a description of each; ours is of the whole text, as OpenAPI 3.1 has it.
        yield response_schema_conformance


class _Fleet(StandInFleet):
    """Whose logs end, though somebody follows them."""

    async def logs(self, ref: str, *, source: str, tail: int, follow: bool) -> AsyncIterator[str]:
        async for line in super().logs(ref, source=source, tail=tail, follow=False):
            yield line


class Api:
    """One app and what is asked of it."""

    def __init__(self) -> None:
        self._fleet = _Fleet()
        self._catalog = StandInCatalog()
        self._snapshots = StandInSnapshots(self._fleet)
        self._schedules = StandInSchedules(self._fleet, self._snapshots)
        self._volumes = StandInVolumes(self._fleet)
        parts = stand_in_parts(self._fleet, self._catalog, self._snapshots, self._volumes, self._schedules)
        self._answers = parts.answers
        app = create_app(parts, auth=None)
        self.schema = schemathesis.openapi.from_asgi("/spec.json", app)

    def operations(self) -> Iterator[Any]:
        """Yield every call that the description names."""
        for found in self.schema.get_all_operations():
            assert isinstance(found, Ok), found
            yield found.ok()

    def check(self, operation: Any, examples: int, number: int) -> None:
        """Ask `examples` times for `operation`, in ways that `number` decides; raise at the first failure."""
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            self._check(_cases(operation, mode), examples, number)

    def check_sequences(self, examples: int, steps: int, *, always_the_same: bool = False) -> Counter[str]:
        """Ask in sequences of `steps` that follow the description's links; raise at the first failure.

        What is made goes by few names, so that calls meet. Returns how often each call succeeded.
        """
        api, succeeded, failures = self, Counter[str](), list[BaseException]()

        class Sequence(self.schema.as_state_machine()):  # type: ignore[misc]
            def setup(self) -> None:
                api._reset()
                self.deleted = set[str]()

            def before_call(self, case: AnyCase) -> None:
                if isinstance(case.body, dict):
                    _make_meet(case.body)

            def validate_response(self, response: Response, case: AnyCase, **_: Any) -> None:
                try:
                    case.validate_response(response, checks=list(_checks(response)))
                    self.check_deleted(response, case)
                except BaseException as failure:
                    failures.append(failure)
                    raise
                if response.status_code < HTTPStatus.MULTIPLE_CHOICES:
                    succeeded[case.operation.label] += 1

            def check_deleted(self, response: Response, case: AnyCase) -> None:
                """What was deleted by its id, which nothing else gets, is not there any more."""
                asked = {name for name in case.path_parameters.values() if _ID.fullmatch(str(name))}
                if response.status_code < HTTPStatus.MULTIPLE_CHOICES:
                    assert not asked & self.deleted, f"{case.operation.label}: it was deleted"
                    if case.method == "DELETE":
                        self.deleted |= asked

        wanted = settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            derandomize=always_the_same,
            phases=(Phase.generate,),
            suppress_health_check=list(HealthCheck),
        )
        try:
            Sequence.run(settings=wanted)
        except Flaky:  # Ids are never the same again.
            if failures:
                raise failures[0] from None
            raise
        return succeeded

    def close(self) -> None:
        """Remove what the stand-ins keep on this host's disk."""
        self._fleet.files.remove()

    def _reset(self) -> None:
        self._fleet.files.remove()
        self._fleet.__init__()  # type: ignore[misc]  # In place: the app holds on to it.
        self._catalog.__init__()  # type: ignore[misc]
        self._answers.store = AnswerStore()
        self._schedules.reset()
        self._fleet.put("src")
        self._snapshots.records.clear()
        self._snapshots.put("src", name="snap")
        self._volumes.records.clear()
        self._volumes.put("data")
        self._catalog.put(IMAGE)

    def _check(self, cases: st.SearchStrategy[AnyCase], examples: int, number: int) -> None:
        @seed(number)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(case=cases)
        def ask(case: AnyCase) -> None:
            self._reset()
            response = case.call()
            case.validate_response(response, checks=list(_checks(response)))

        with suppress(Unsatisfiable):  # Some calls take nothing that could be wrong.
            ask()


def _make_meet(body: dict[str, Any]) -> None:
    """Have a body that was drawn name what is there, or what others name, too."""
    if isinstance(body.get("image"), str):
        body["image"] = IMAGE
    for field, known in MET.items():
        if isinstance(body.get(field), str):
            body[field] = known[len(body[field]) % len(known)]


def _cases(operation: Any, mode: GenerationMode) -> st.SearchStrategy[AnyCase]:
    """Return requests, half of which name an instance, a snapshot and an image that exist."""

    def known(drawn: tuple[AnyCase, bool]) -> AnyCase:
        case, exists = drawn
        if exists and case.path_parameters:
            for name in EXISTING.keys() & case.path_parameters.keys():
                case.path_parameters[name] = EXISTING[name]
        if exists and isinstance(case.body, dict) and "image" in case.body:
            case.body["image"] = IMAGE
        return case

    return st.tuples(operation.as_strategy(generation_mode=mode), st.booleans()).map(known)


def run(seconds: int) -> int:
    """Ask until the time is over; return 0 if nothing was found."""
    warnings.simplefilter("ignore")
    end = time.monotonic() + seconds
    count = 0
    with closing(Api()) as api:
        operations = list(api.operations())
        while time.monotonic() < end:
            try:
                api.check_sequences(EXAMPLES_A_ROUND, STEP_COUNT)
            except Exception as error:
                print(f"a sequence: {error!r}\n{error}", file=sys.stderr)
                return 1
            count += EXAMPLES_A_ROUND * STEP_COUNT
            for operation in operations:
                number = time.monotonic_ns()
                try:
                    api.check(operation, EXAMPLES_A_ROUND, number)
                except Exception as error:
                    print(f"{operation.label}: seed {number}: {error!r}\n{error}", file=sys.stderr)
                    return 1
                count += 2 * EXAMPLES_A_ROUND
    print(f"stat::number_of_executed_units: {count}", file=sys.stderr)
    return 0
