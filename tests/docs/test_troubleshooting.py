"""docs/troubleshooting.md has every code an error can have, once, and says what mends it."""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import ramet
from ramet.api.errors import CODE
from ramet.core.errors import Conflict, Exhausted, Invalid, NotFound, RametError, Unsupported

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/troubleshooting.md"
SOURCES = ROOT / "src/ramet"
ROW = re.compile(r"^\| `(\w+)` \| (.*) \| (.*) \|$", re.MULTILINE)
REFUSALS: tuple[type[RametError], ...] = (Invalid, NotFound, Conflict, Exhausted, Unsupported)
WORDS_MIN = 2  # Of a remedy: less helps nobody.


def kinds_below(kind: type[RametError]) -> Iterator[type[RametError]]:
    for narrower in kind.__subclasses__():
        yield narrower
        yield from kinds_below(narrower)


def codes() -> set[str]:
    """Return the codes of all errors that the program defines, and of those that are not classes."""
    for module in pkgutil.walk_packages(ramet.__path__, "ramet."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    ours = [kind for kind in kinds_below(RametError) if kind.__module__.startswith("ramet.")]
    return {RametError.code, *(kind.code for kind in ours), *CODE.values()}


def rows() -> list[tuple[str, str, str]]:
    """Return code, meaning and remedy of each row of the page."""
    return [(row[1], row[2].strip(), row[3].strip()) for row in ROW.finditer(PAGE.read_text())]


def test_every_code_has_a_row_and_every_row_a_code() -> None:
    written = {code for code, _, _ in rows()}
    expected = codes()
    assert sorted(expected - written) == [], "add a row for each to docs/troubleshooting.md"
    assert sorted(written - expected) == [], "no error has these codes any more"


def test_no_code_has_two_rows_and_none_is_without_help() -> None:
    found = rows()
    assert len({code for code, _, _ in found}) == len(found)
    assert [code for code, meaning, remedy in found if len(meaning.split()) < WORDS_MIN] == []
    assert [code for code, meaning, remedy in found if len(remedy.split()) < WORDS_MIN] == []


def test_every_table_row_is_read() -> None:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    assert len(lines) == len(rows())


def constructions() -> Iterator[tuple[str, str, bool]]:
    """Yield where, and as what, the code makes an error, and whether it gives it a remedy of its own."""
    for path in sorted(SOURCES.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                has_remedy = any(keyword.arg == "remedy" for keyword in node.keywords)
                yield f"{path.relative_to(SOURCES)}:{node.lineno}", node.func.id, has_remedy


def test_whoever_sends_something_wrong_hears_what_to_do() -> None:
    codes()  # Imports all modules.
    refusals = [kind for refusal in REFUSALS for kind in kinds_below(refusal)]
    needy = {kind.__name__ for kind in refusals if not kind.remedy_default}
    silent = [f"{place} {name}" for place, name, has in constructions() if name in needy and not has]
    assert silent == [], "give them a remedy, or their class a remedy_default"
