"""docs/api.md lists every call that the server answers."""

import re
from contextlib import closing
from pathlib import Path

from fuzz.api import Api

PAGE = Path(__file__).parents[2] / "docs/api.md"
CELL = re.compile(r"^\| (.*?) \|", re.MULTILINE)
METHODS = re.compile(r"\b(GET|POST|PUT|DELETE|PATCH)\b")
# Not in the description: the description itself, and what speaks no JSON.
BESIDE = {
    ("GET", "/spec.json"),
    ("GET", "/spec.yaml"),
    ("GET", "/swagger"),
    ("GET", "/metrics"),
    ("GET", "/instances/{id}/exec"),
    ("GET", "/instances/{id}/exec/v1"),
    ("GET", "/instances/{id}/cp"),
}


def written() -> set[tuple[str, str]]:
    """Return method and path of each call in the table; a cell may hold several."""
    table = PAGE.read_text().partition("## Calls\n")[2].partition("\n#")[0]
    found = set()
    for cell in CELL.findall(table):
        for code in re.findall(r"`([^`]+)`", cell):
            methods = METHODS.findall(code) or ["GET"]
            path = METHODS.sub("", code).strip().partition("?")[0]
            if path:
                found |= {(method, path) for method in methods}
    return found


def test_the_table_of_calls_is_whole() -> None:
    with closing(Api()) as api:
        described = {tuple(operation.label.split(" ", 1)) for operation in api.operations()}
    assert written() == {(method, path) for method, path in described} | BESIDE
