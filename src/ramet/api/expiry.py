"""When instances are to be removed, on the wire: as a time from now, or as a moment."""

from datetime import datetime
from typing import Final

from ramet.api.bounds import about
from ramet.core.errors import Invalid
from ramet.core.units import parse_duration

LIFETIME_S_MAX: Final = 10 * 365 * 86_400.0
_FORMAT: Final = "write a moment like 2027-01-31T12:00:00Z"


def is_said(ttl: str | None, expires_at: str | None) -> bool:
    """Tell whether a request says when."""
    return ttl is not None or expires_at is not None


def to_expiry(ttl: str | None, expires_at: str | None, now: float) -> float | None:
    """Return when, in Unix seconds; None: never, which is what a `ttl` of zero asks for.

    Raises:
        Invalid: both are said, or one is no time, or none to come, or more than ten years ahead.
    """
    if ttl is not None and expires_at is not None:
        raise Invalid("ttl and expires_at exclude each other", remedy="use one", field="ttl")
    if ttl is not None:
        with about("ttl"):
            lifetime_s = parse_duration(ttl)
        if lifetime_s > LIFETIME_S_MAX:
            raise Invalid(f"ttl is {ttl}", remedy="use ten years at most", field="ttl")
        return now + lifetime_s if lifetime_s else None
    if expires_at is None:
        return None
    try:
        moment = datetime.fromisoformat(expires_at)
    except ValueError as error:
        raise Invalid(f"expires_at is {expires_at!r:.40}", remedy=_FORMAT, field="expires_at") from error
    if moment.tzinfo is None:
        raise Invalid("expires_at names no time zone", remedy=_FORMAT, field="expires_at")
    if not now < moment.timestamp() <= now + LIFETIME_S_MAX:
        raise Invalid(
            f"expires_at is {expires_at!r:.40}",
            remedy="use a moment of the next ten years",
            field="expires_at",
        )
    return moment.timestamp()
