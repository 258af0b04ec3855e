"""What people read: ages, sizes, tables; and the reference in the docs."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from ramet.cli.names import invent_name
from ramet.cli.output import age, human_size, print_table
from ramet.cli.reference import render
from ramet.core.ids import is_name

DOCS = Path(__file__).parent.parent.parent / "docs"
NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("created_at", "text"),
    [
        ("2026-03-01T12:00:00Z", "now"),
        ("2026-03-01T12:00:05Z", "now"),
        ("2026-03-01T11:59:59Z", "1 second ago"),
        ("2026-03-01T11:58:00.500Z", "1 minute ago"),
        ("2026-03-01T09:00:00Z", "3 hours ago"),
        ("2026-02-28T12:00:00+00:00", "1 day ago"),
        ("2024-02-28T12:00:00Z", "2 years ago"),
    ],
)
def test_ages_are_told_in_their_largest_unit(created_at: str, text: str) -> None:
    assert age(created_at, NOW) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(None, ""), (0, "0B"), (1023, "1023B"), (1536, "1.5KB"), (5 << 20, "5.0MB"), (3 << 40, "3.0TB")],
)
def test_sizes_are_told_in_their_largest_unit(size_bytes: int | None, text: str) -> None:
    assert human_size(size_bytes) == text


def test_columns_are_as_wide_as_their_widest_cell(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("NAME", "IP"), [("a", "1"), ("longer", "")])
    assert capsys.readouterr().out == "NAME     IP\na        1\nlonger\n"


def test_invented_names_can_be_names() -> None:
    assert all(is_name(invent_name()) for _ in range(100))


def test_the_reference_is_what_the_commands_say() -> None:
    written = (DOCS / "cli.md").read_text()
    assert written == render(), "run: python -m ramet.cli.reference > docs/cli.md"
