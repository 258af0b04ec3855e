"""docs/compatibility.md is what the declarations say."""

from pathlib import Path

from tests.compat.table import render

PAGE = Path(__file__).parents[2] / "docs/compatibility.md"


def test_the_page_is_written_from_the_declarations() -> None:
    assert PAGE.read_text() == render(), "run: python -m tests.compat.table > docs/compatibility.md"
