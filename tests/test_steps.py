"""Steps are found by themselves: whatever a module that touches the host offers, and another calls."""

import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from tests.steps import watch_steps

TOUCHING = """
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager, contextmanager

def make(): _inside(); write()
def write(): pass
def _inside(): pass

class Port(ABC):
    @abstractmethod
    async def send(self): ...

class Wire(Port):
    async def send(self): self.drop()
    def drop(self): pass
    @asynccontextmanager
    async def held(self): yield

@contextmanager
def transaction(): yield
"""
ACTING = """
from %(package)s import touching
from %(package)s.touching import Wire, make, transaction

async def act():
    with transaction():
        make()
    async with Wire().held():
        await Wire().send()
        touching.write()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return a package with one module that touches the host, and one that acts by it."""
    package = "acting_by_steps"
    (tmp_path / package).mkdir()
    (tmp_path / package / "__init__.py").touch()
    (tmp_path / package / "touching.py").write_text(TOUCHING)
    (tmp_path / package / "acting.py").write_text(ACTING % {"package": package})
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def test_every_call_from_outside_is_a_step_and_so_is_the_end_of_what_it_opened(package: str) -> None:
    acting = importlib.import_module(f"{package}.acting")
    taken: list[str] = []
    steps = watch_steps(taken.append, (f"{package}.touching",))
    anyio.run(acting.act)
    assert taken == []
    for _ in range(2):
        taken.clear()
        steps.begin()
        anyio.run(acting.act)
        assert taken == [
            "transaction 1",
            "make 1",
            "end of transaction 1",
            "Wire.held 1",
            "Wire.send 1",
            "write 1",
            "end of Wire.held 1",
        ]


def test_calls_of_packages_that_are_left_out_are_no_steps(package: str) -> None:
    acting = importlib.import_module(f"{package}.acting")
    taken: list[str] = []
    watch_steps(taken.append, (f"{package}.touching",), not_from=(package,)).begin()
    anyio.run(acting.act)
    assert taken == []


def test_every_name_that_is_excepted_is_still_there() -> None:
    """In a process of its own: what is watched stays so."""
    code = "from tests.steps import watch_steps; watch_steps(lambda step: None)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)
