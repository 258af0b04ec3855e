"""What commands print: tables for people, JSON for programs, errors in one line."""

import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import click

from ramet.client.errors import ApiError
from ramet.core.errors import RametError
from ramet.wire_api.codec import encode

SHORT_ID_LENGTH: Final = 12
_GAP: Final = "   "
_AGES: Final = ((86_400 * 365, "year"), (86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def report(error: RametError) -> None:
    """Print an error on stderr with its code, and beneath it what may be done about it."""
    code = error.error.code if isinstance(error, ApiError) else error.code
    click.echo(f"Error: {error.message} [{code}]", err=True)
    if error.remedy:
        click.echo(f"  {error.remedy}", err=True)


def for_each(refs: Sequence[str], act: Callable[[str], None]) -> int:
    """Act on every one, also when one before has failed, which is reported; return the exit code."""
    exit_code = 0
    for ref in refs:
        try:
            act(ref)
        except RametError as error:
            report(error)
            exit_code = 1
    return exit_code


def print_json(value: Any) -> None:
    """Print wire types as JSON."""
    click.echo(json.dumps(encode(value), indent=2))


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns as wide as their widest cell."""
    lines = [heads, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo(_GAP.join(cells).rstrip())


def age(created_at: str, now: datetime | None = None) -> str:
    """Return how long ago a time in RFC 3339 was: "5 minutes ago"."""
    passed_s = ((now or datetime.now(UTC)) - datetime.fromisoformat(created_at)).total_seconds()
    for unit_s, unit in _AGES:
        count = int(passed_s // unit_s)
        if count >= 1:
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "now"


def human_size(size_bytes: int | None) -> str:
    """Return a size with one digit behind the point: "4.2MB"."""
    if size_bytes is None:
        return ""
    size = float(size_bytes)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1024:
            return f"{size:.0f}{unit}" if unit == "B" else f"{size:.1f}{unit}"
        size /= 1024
    return f"{size:.1f}TB"


def write_bytes(data: bytes, *, to_stderr: bool = False) -> None:
    """Write a guest's output as it is, at once."""
    stream = sys.stderr.buffer if to_stderr else sys.stdout.buffer
    stream.write(data)
    stream.flush()
