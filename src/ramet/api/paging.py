"""Lists in pieces: `limit` things at a time, each piece with the cursor that the next one goes on from.

A cursor is the place of the last thing told, by when it was made and its id, and not its number in the list:
what is made or deleted between two pieces makes nothing be told twice, and nothing that stays be left out.
"""

import base64
import binascii
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Final, Generic, TypeVar

from fastapi import Query

from ramet.core.errors import Invalid

LIMIT_MAX: Final = 10_000
CURSOR_HEADER: Final = "x-next-cursor"
CURSOR_LENGTH_MAX: Final = 1024  # The name of an image may be long.

_NOT_OURS: Final = "The cursor is none that a list has given"

T = TypeVar("T")
Limit = Annotated[int | None, Query(ge=1, le=LIMIT_MAX)]
"""How many things a call that lists is asked for at most."""
Place = tuple[float, str]
"""When a thing was made, in Unix seconds, and its id, or the name that it has alone."""


class InvalidCursor(Invalid):
    """The text is no cursor that a list has given."""

    code = "invalid_cursor"
    remedy_default = "send the header x-next-cursor of the piece before, or leave cursor out"


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One piece of a list. `cursor` leads to the next; None: this was the last."""

    items: Iterable[T]
    cursor: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        """What the answer carries besides the things."""
        return {} if self.cursor is None else {CURSOR_HEADER: self.cursor}


def page(items: Sequence[T], place: Callable[[T], Place], limit: int | None, cursor: str | None) -> Page[T]:
    """Return the `limit` oldest of `items` behind `cursor`; without either, all of them as they are.

    Raises:
        InvalidCursor: it is none.
    """
    if limit is None and cursor is None:
        return Page(items)
    ordered = sorted(items, key=place)
    last = read_cursor(cursor)
    if last is not None:
        ordered = [item for item in ordered if place(item) > last]
    return first_page(ordered, place, limit)


def first_page(items: Iterable[T], place: Callable[[T], Place], limit: int | None) -> Page[T]:
    """Return the first `limit` of `items`, which are in order and looked at no further than that."""
    if limit is None:
        return Page(items)
    told = list(islice(items, limit + 1))
    return Page(told) if len(told) <= limit else Page(told[:-1], _write(place(told[-2])))


def read_cursor(cursor: str | None) -> Place | None:
    """Return the place that a request goes on from; None: from the beginning.

    Raises:
        InvalidCursor: the text is none.
    """
    return None if cursor is None else _read(cursor)


def _write(place: Place) -> str:
    made_at, name = place
    return base64.urlsafe_b64encode(f"{made_at!r} {name}".encode()).decode().rstrip("=")


def _read(cursor: str) -> Place:
    if len(cursor) > CURSOR_LENGTH_MAX:
        raise InvalidCursor("The cursor is longer than any")
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        made_at, _, name = base64.b64decode(padded, altchars=b"-_", validate=True).decode().partition(" ")
        place = float(made_at), name
    except (binascii.Error, ValueError) as error:
        raise InvalidCursor(_NOT_OURS) from error
    if not math.isfinite(place[0]):
        raise InvalidCursor(_NOT_OURS)
    return place
