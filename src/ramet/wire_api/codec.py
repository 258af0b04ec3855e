"""From JSON values to wire types and back, without pydantic: a command must start in milliseconds.

Reading is lenient, as a client must be: members it does not know come from a newer server.
"""

import types
from collections.abc import Hashable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T")


def decode(kind: type[T], raw: object) -> T:
    """Return the dataclass `kind` that the JSON object `raw` stands for.

    Raises:
        ValueError: `raw` is no object, or lacks a member that has no default.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"expected an object for {kind.__name__}, got {type(raw).__name__}")
    members = {
        name: _value(hint, raw[name]) for name, hint in _hints(cast(Hashable, kind)).items() if name in raw
    }
    try:
        return kind(**members)
    except TypeError as error:
        raise ValueError(f"incomplete {kind.__name__}: {error}") from error


def encode(value: object) -> Any:
    """Return `value` as JSON-able values; members of dataclasses that are None are left out."""
    if is_dataclass(value) and not isinstance(value, type):
        pairs = ((field.name, getattr(value, field.name)) for field in fields(value))
        return {name: encode(member) for name, member in pairs if member is not None}
    if isinstance(value, Mapping):
        return {name: encode(member) for name, member in value.items()}
    if isinstance(value, tuple | list):
        return [encode(member) for member in value]
    return value


@cache
def _hints(kind: Any) -> dict[str, Any]:
    names = {field.name for field in fields(kind)}
    return {name: hint for name, hint in get_type_hints(kind).items() if name in names}


def _value(hint: Any, raw: object) -> Any:
    if raw is None:
        return None
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _value(next(arg for arg in get_args(hint) if arg is not type(None)), raw)
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return decode(hint, raw)
    if origin is tuple:
        if not isinstance(raw, list):
            raise ValueError(f"expected a list, got {type(raw).__name__}")
        return tuple(_value(get_args(hint)[0], member) for member in raw)
    return raw
