"""Durations and counts of requests, which must lie within bounds."""

from collections.abc import Iterator
from contextlib import contextmanager

from ramet.core.errors import Invalid
from ramet.core.units import format_duration, parse_duration


@contextmanager
def about(field: str) -> Iterator[None]:
    """Have what is refused inside name the field that it stood in.

    Raises:
        Invalid: what was refused, with the field.
    """
    try:
        yield
    except Invalid as error:
        if type(error) is not Invalid or "field" in error.fields:
            raise
        raise Invalid(
            f"{field}: {error.message}", remedy=error.remedy, **error.fields, field=field
        ) from error


def bounded_duration(field: str, text: str | None, default_s: float, min_s: float, max_s: float) -> float:
    """Return the seconds that `text` stands for; None: `default_s`.

    Raises:
        Invalid: it is no duration, or out of bounds; it names the field.
    """
    if text is None:
        return default_s
    with about(field):
        duration_s = parse_duration(text)
    if not min_s <= duration_s <= max_s:
        bounds = f"from {format_duration(min_s)} to {format_duration(max_s)}"
        raise Invalid(f"{field} is {text}", remedy=f"use a duration {bounds}", field=field)
    return duration_s


def bounded_count(field: str, count: int | None, default: int, least: int, most: int) -> int:
    """Return `count`; None: `default`.

    Raises:
        Invalid: it is out of bounds; it names the field.
    """
    if count is None:
        return default
    if not least <= count <= most:
        raise Invalid(f"{field} is {count}", remedy=f"use {least} to {most}", field=field)
    return count
