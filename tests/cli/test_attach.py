"""Commands that are left running, and come back to, on the command line."""

import json

import pytest

from tests.api.stand_in import Served
from tests.cli.conftest import Ramet


@pytest.fixture(autouse=True)
def web(served: Served) -> None:
    served.fleet.put("web")


def test_a_command_is_left_and_come_back_to(ramet: Ramet, served: Served) -> None:
    exit_code, session, _ = ramet("exec", "-d", "--keep", "1h", "web", "--", "fail", "oops", "3")
    assert exit_code == 0
    session = session.strip()
    assert ramet("attach", "web", session) == (3, "before ", "oops")
    assert ramet("attach", "--since", "7", "web", session) == (3, "", "oops")
    assert len(served.fleet.commands) == 1


def test_sessions_are_listed(ramet: Ramet) -> None:
    session = ramet("exec", "-d", "web", "hang")[1].strip()
    lines = [line.split() for line in ramet("attach", "web")[1].splitlines()]
    assert lines[0] == ["SESSION", "STATUS", "ATTACHED", "BYTES", "COMMAND"]
    (shown,) = [line for line in lines if line[0] == session]
    assert (shown[1], shown[2], shown[4]) == ("running", "no", "hang")
    raw = {found["id"]: found for found in json.loads(ramet("attach", "--json", "web")[1])}
    assert raw[session]["command"] == ["hang"]


def test_one_that_is_not_there_is_told_so(ramet: Ramet) -> None:
    exit_code, _, err = ramet("attach", "web", "nobody")
    assert exit_code == 1
    assert "[exec_session_not_found]" in err


@pytest.mark.parametrize(
    "options", [("-d", "-t"), ("--keep", "1m"), ("-d", "--keep", "soon"), ("-d", "--keep", "25h")]
)
def test_options_that_make_no_sense_are_refused(
    ramet: Ramet, served: Served, options: tuple[str, ...]
) -> None:
    assert ramet("exec", *options, "web", "echo")[0] != 0
    assert not served.fleet.commands
