"""Every code the doctor can give stands in its page, under its level."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [*sorted((ROOT / "src/ramet/doctor").glob("*.py")), ROOT / "src/ramet/daemon/checkup.py"]
HEADINGS = {"fail": "What fails", "warn": "What is warned of", "info": "What is told"}


def codes_of(level: str) -> set[str]:
    """Return the codes written out in calls such as `fail(check, code, ...)`."""
    calls = [
        node
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == level
    ]
    codes = [call.args[1] for call in calls]
    return {str(code.value) for code in codes if isinstance(code, ast.Constant)}


@pytest.mark.parametrize("level", HEADINGS)
def test_every_code_stands_under_its_level(level: str) -> None:
    page = (ROOT / "docs/doctor.md").read_text()
    section = page.partition(f"## {HEADINGS[level]}\n")[2].partition("\n## ")[0]
    codes = codes_of(level)
    assert len(codes) > 5
    assert codes <= set(re.findall(r"`(\w+)`", section))
