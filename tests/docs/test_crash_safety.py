"""docs/crash-safety.md names, for each promise, tests that are there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/crash-safety.md"
ROW = re.compile(r"^\| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)
TEST = re.compile(r"^\s*(?:async )?def test_", re.MULTILINE)
PROMISE_COUNT_MIN = 10


def promises() -> dict[str, list[str]]:
    """Return the files that are named for each promise."""
    rows = [(promise, files) for promise, files in ROW.findall(PAGE.read_text()) if promise != "promise"]
    return {promise: re.findall(r"`([^`]+)`", files) for promise, files in rows}


def test_every_promise_has_tests_and_they_are_there() -> None:
    found = promises()
    assert len(found) >= PROMISE_COUNT_MIN
    for promise, files in found.items():
        assert files, promise
        for file in files:
            assert TEST.search((ROOT / file).read_text()), (promise, file)
