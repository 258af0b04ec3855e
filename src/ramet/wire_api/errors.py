"""The body of every answer that is no success."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """One of several reasons; `field` is the member of the request it is about."""

    code: str
    message: str
    field: str | None = None


@dataclass(frozen=True, slots=True)
class Error:
    """The body of every answer that is no success.

    Additive: `remedy`, what the caller may do about it; `fields`, facts for a program; `request_id`, by which
    the server's log names the request.
    """

    code: str
    message: str
    details: tuple[ErrorDetail, ...] = ()
    inner_error: ErrorDetail | None = None
    remedy: str | None = None
    fields: Mapping[str, Any] | None = None
    request_id: str | None = None
