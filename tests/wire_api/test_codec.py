"""Wire types survive JSON, and pydantic and our own codec agree on what it looks like."""

import dataclasses
import json
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from ramet.wire_api.codec import decode, encode
from ramet.wire_api.errors import Error, ErrorDetail
from ramet.wire_api.images import Image
from ramet.wire_api.instances import CreateInstance, ForkManyResult, Instance, WaitResult
from ramet.wire_api.system import Capabilities

JSON = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Return what may stand in a member declared as `hint`."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = get_type_hints(hint)
        return st.builds(
            hint, **{field.name: values_of(hints[field.name]) for field in dataclasses.fields(hint)}
        )
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return st.one_of([values_of(argument) for argument in arguments])
    if origin is tuple:
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if origin is Mapping:
        return st.dictionaries(st.text(), values_of(arguments[1]), max_size=3)
    simple = {Any: JSON, float: NUMBERS, type(None): st.none(), int: st.integers(-(2**53), 2**53)}
    return simple[hint] if hint in simple else st.from_type(hint)


KINDS: list[type[Any]] = [Instance, ForkManyResult, Image, Capabilities, Error, CreateInstance, WaitResult]


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)  # The first draw makes the strategy.
@given(data=st.data())
def test_what_the_server_writes_the_client_reads(kind: type[Any], data: st.DataObject) -> None:
    value = data.draw(values_of(kind))
    assert decode(kind, json.loads(TypeAdapter(kind).dump_json(value))) == value


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)  # The first draw makes the strategy.
@given(data=st.data())
def test_what_the_client_writes_it_reads_again(kind: type[Any], data: st.DataObject) -> None:
    value = data.draw(values_of(kind))
    assert decode(kind, json.loads(json.dumps(encode(value)))) == value


def test_members_of_a_newer_server_are_ignored() -> None:
    assert decode(WaitResult, {"state": "Running", "timed_out": False, "mood": "good"}).state == "Running"


@pytest.mark.parametrize("raw", [None, [], "text", {"state": "Running"}])
def test_what_is_no_such_thing_is_refused(raw: object) -> None:
    with pytest.raises(ValueError):
        decode(WaitResult, raw)


def test_a_list_in_place_of_an_object_is_refused() -> None:
    with pytest.raises(ValueError):
        decode(Error, {"code": "a", "message": "b", "details": {}})


def test_nested_values_become_wire_types() -> None:
    raw = {"code": "a", "message": "b", "details": [{"code": "c", "message": "d"}]}
    assert decode(Error, raw) == Error("a", "b", (ErrorDetail("c", "d"),))


def test_what_is_not_said_is_left_out() -> None:
    assert encode(CreateInstance("web", "alpine")) == {"name": "web", "image": "alpine"}
    assert encode(WaitResult("Running", timed_out=False)) == {"state": "Running", "timed_out": False}
