"""Every module, public class and public function says what it is for, and so does every abstract method.

Other methods are left to judgement: `close()` needs no sentence, and one that carries out what a base
declares has its contract there.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src" / "ramet"
FILES = sorted(path.relative_to(SRC) for path in SRC.rglob("*.py"))

Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def undocumented(source: str) -> list[str]:
    """Return the names of what should have a docstring and has none; "module" for the file itself."""
    tree = ast.parse(source)
    missing = [] if ast.get_docstring(tree) or not tree.body else ["module"]
    return missing + [name for name, node in public(tree, "") if ast.get_docstring(node) is None]


def public(tree: ast.Module | ast.ClassDef, scope: str) -> Iterator[tuple[str, Documented]]:
    for node in tree.body:
        if not isinstance(node, Documented) or node.name.startswith("_"):
            continue
        name = f"{scope}{node.name}"
        if isinstance(node, ast.ClassDef):
            yield name, node
            yield from public(node, f"{name}.")
        elif isinstance(tree, ast.Module) or is_abstract(node):
            yield name, node


def is_abstract(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(decorator).endswith("abstractmethod") for decorator in node.decorator_list)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_everything_public_is_documented(path: Path) -> None:
    assert undocumented((SRC / path).read_text()) == []


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        ("", []),
        ("x = 1", ["module"]),
        ('"""M."""\ndef f(): ...', ["f"]),
        ('"""M."""\nclass C:\n    @abstractmethod\n    def f(self): ...\n    def g(self): ...', ["C", "C.f"]),
        ('"""M."""\nclass C(Port):\n    """C."""\n    def f(self): ...', []),
    ],
)
def test_the_rule_sees_what_is_missing(source: str, missing: list[str]) -> None:
    assert undocumented(source) == missing
