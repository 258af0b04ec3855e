"""JSON as requests may use it: one meaning only.

The standard's parser takes the last of two members with one name, reads NaN and numbers beyond any, and lets
through halves of characters that nothing can write again. Whoever sends such has made a mistake, or wants two
readers of one request to see two things; so it is refused before any field of it is looked at.
"""

import json
import math
from collections import Counter
from typing import Any, Final

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection

from ramet.core.errors import Invalid

NAME_LENGTH_SHOWN: Final = 60


class WrongContentType(Invalid):
    """The body says that it is something else than JSON."""

    code = "wrong_content_type"


def parse(content: bytes | str) -> Any:
    """Return the value that `content` is.

    Raises:
        Invalid: it is not JSON, or JSON that means two things.
    """
    try:
        value = json.loads(
            content, object_pairs_hook=_members, parse_constant=_refuse_number, parse_float=_number
        )
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Invalid(
            "The JSON holds half a character (a lone surrogate)", remedy="send whole characters"
        ) from error
    except (ValueError, RecursionError) as error:
        raise Invalid("The text is not JSON, or nested too deep") from error
    return value


async def check_body(connection: HTTPConnection) -> None:
    """Refuse a body that `parse` refuses, where the call takes one.

    Raises:
        WrongContentType: it does not say that it is JSON.
        Invalid: it is not JSON with one meaning.
    """
    if not isinstance(connection, Request) or not _takes_json(connection):
        return
    content = await connection.body()
    if not content:
        return  # That a body is missing, or may be, the call itself knows.
    kind = connection.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise WrongContentType(
            "The body does not say that it is JSON", remedy="send Content-Type: application/json"
        )
    parse(content)


def _takes_json(request: Request) -> bool:
    route = request.scope.get("route")
    return isinstance(route, APIRoute) and route.body_field is not None


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = counts.most_common(1)[0][0]
        raise Invalid(
            f"The member {twice[:NAME_LENGTH_SHOWN]!r} is there twice", remedy="leave one of them out"
        )
    return members


def _refuse_number(text: str) -> float:
    raise Invalid(f"{text} is no number in JSON", remedy="leave the member out")


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise Invalid(f"{text[:NAME_LENGTH_SHOWN]} is too large for a number", remedy="send a smaller one")
    return number
