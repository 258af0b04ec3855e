"""How long modules and functions are: short ones are one idea. The report is printed with `pytest -s`.

A place that is better long stands in the list below with its reason.
"""

import ast
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
REPORT_ROWS = 8

# "path" or "path:function" -> why it is better long.
LONG_FOR_A_REASON: dict[str, str] = {}


def python_files() -> list[Path]:
    return [
        path for folder in ("src", "tests", "bench", "examples") for path in (ROOT / folder).rglob("*.py")
    ]


def rust_files() -> list[Path]:
    return [path for path in (ROOT / "native").rglob("*.rs") if "target" not in path.parts]


def module_lengths() -> dict[str, int]:
    files = python_files() + rust_files()
    return {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}


def functions(tree: ast.AST, scope: str = "") -> Iterator[tuple[str, int]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.expr):
            continue  # No function is defined within one.
        inner = scope
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{scope}.{node.name}".lstrip(".")
            if not isinstance(node, ast.ClassDef):
                assert node.end_lineno is not None
                yield inner, node.end_lineno - node.lineno + 1
        yield from functions(node, inner)


@functools.cache
def function_lengths() -> dict[str, int]:
    return {
        f"{path.relative_to(ROOT)}:{name}": length
        for path in python_files()
        for name, length in functions(ast.parse(path.read_text()))
    }


@pytest.mark.parametrize(
    ("what", "measure", "lines_max"),
    [("modules", module_lengths, MODULE_LINES_MAX), ("functions", function_lengths, FUNCTION_LINES_MAX)],
    ids=["modules", "functions"],
)
def test_nothing_is_longer_than_one_idea(
    what: str, measure: Callable[[], dict[str, int]], lines_max: int
) -> None:
    lengths = measure()
    longest = sorted(lengths.items(), key=lambda item: -item[1])[:REPORT_ROWS]
    print(f"\n{len(lengths)} {what}, {sum(lengths.values())} lines; the longest:")
    for name, length in longest:
        print(f"  {length:5}  {name}")
    too_long = {name: n for name, n in lengths.items() if n > lines_max and name not in LONG_FOR_A_REASON}
    assert not too_long, f"more than {lines_max} lines"


def test_each_exception_is_still_needed() -> None:
    lengths = module_lengths() | function_lengths()
    for name in LONG_FOR_A_REASON:
        assert lengths.get(name, 0) > (FUNCTION_LINES_MAX if ":" in name else MODULE_LINES_MAX)
