"""Times as the API shows them: RFC 3339, in UTC."""

from datetime import datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1)  # One without a zone is written in half the time.


def format_time(unix_s: float) -> str:
    """Write a time, to the millisecond."""
    return (_EPOCH + timedelta(seconds=unix_s)).isoformat(timespec="milliseconds") + "Z"


def shown_time(unix_s: float | None) -> str | None:
    """Write a time, if there is one."""
    return None if unix_s is None else format_time(unix_s)
