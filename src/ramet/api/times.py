"""Times as the API shows them: RFC 3339, in UTC."""

from datetime import UTC, datetime


def format_time(unix_s: float) -> str:
    """Write a time, to the millisecond."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def shown_time(unix_s: float | None) -> str | None:
    """Write a time, if there is one."""
    return None if unix_s is None else format_time(unix_s)
