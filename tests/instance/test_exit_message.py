"""How a workload ended, in words."""

import pytest

from ramet.core.spec import Exit
from ramet.instance.fleet_types import exit_message


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (Exit(0), ""),
        (Exit(127, None, "nothing: No such file"), "nothing: No such file"),
        (Exit(None, 9), "killed by signal 9 (SIGKILL)"),
        (Exit(None, 9, "OOM"), "killed by signal 9 (SIGKILL) - OOM"),
        (Exit(None, 15), "killed by signal 15 (SIGTERM)"),
        (Exit(None, 33), "killed by signal 33"),
    ],
)
def test_a_signal_has_its_name_and_why_it_was_sent(end: Exit, words: str) -> None:
    assert exit_message(end) == words
