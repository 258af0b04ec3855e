"""A package's `__init__` only re-exports, and what it exports is there."""

import ast
import importlib
from pathlib import Path

import pytest

SRC = Path(__file__).parent.parent / "src"
PACKAGES = sorted(path.parent.relative_to(SRC) for path in (SRC / "ramet").rglob("__init__.py"))


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_an_init_only_re_exports(package: Path) -> None:
    body = ast.parse((SRC / package / "__init__.py").read_text()).body
    for node in body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_name = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("__all__", "__version__")
        assert is_docstring or is_name or isinstance(node, ast.ImportFrom), f"line {node.lineno}"


@pytest.mark.parametrize("package", PACKAGES, ids=str)
def test_what_is_exported_is_there(package: Path) -> None:
    module = importlib.import_module(".".join(package.parts))
    exported = getattr(module, "__all__", ())
    assert isinstance(exported, tuple)
    assert len(set(exported)) == len(exported)
    for name in exported:
        assert hasattr(module, name)
