"""`ramet exec -t` on a pseudo-terminal, against a served stand-in."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.stand_in import Served
from tests.cli.pseudo_terminal import PseudoTerminal, at_terminal


def environment(served: Served) -> dict[str, str]:
    return {**os.environ, "RAMET_HOST": served.unix_url}


@pytest.fixture
def shell(served: Served) -> Iterator[PseudoTerminal]:
    """Return a terminal with a guest's shell on it."""
    served.fleet.put("web")
    with at_terminal("exec", "-it", "web", "shell", environment=environment(served), size=(33, 101)) as shell:
        shell.wait_seen("size 33x101")
        yield shell


def test_what_is_typed_goes_to_the_guest_and_the_size_with_it(shell: PseudoTerminal) -> None:
    shell.type("hello\r")
    shell.wait_seen("said hello\r\n")
    shell.resize(50, 132)
    shell.wait_seen("size 50x132")
    assert shell.modes() != shell.modes_before
    shell.type("exit\r")
    assert shell.wait_end() == 7
    assert shell.modes() == shell.modes_before


def test_control_keys_are_bytes_for_the_guest(shell: PseudoTerminal) -> None:
    shell.type("a\x03b\x04\x1a\x1c\r")
    shell.wait_seen("said a^Cb\x04\x1a\x1c")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_session_and_gives_the_terminal_back(
    shell: PseudoTerminal, served: Served, number: int
) -> None:
    assert shell.process is not None
    shell.process.send_signal(number)
    assert shell.wait_end() == 128 + number
    assert shell.modes() == shell.modes_before
    assert b"Traceback" not in shell.seen


def test_a_server_that_goes_away_gives_the_terminal_back(shell: PseudoTerminal, served: Served) -> None:
    shell.type("break\r")
    shell.wait_seen("Error: the guest went away [internal_error]\r\n")
    assert shell.wait_end() == 1
    assert shell.modes() == shell.modes_before


def test_after_a_stop_the_terminal_is_raw_again(shell: PseudoTerminal) -> None:
    assert shell.process is not None
    shell.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, shell.process.pid, os.WSTOPPED | os.WNOWAIT)
    raw = shell.modes()
    shell.set_modes(shell.modes_before)
    shell.resize(9, 9)
    shell.process.send_signal(signal.SIGCONT)
    shell.wait_seen("size 9x9")
    assert shell.modes() == raw
    shell.type("\x03exit\rexit\r")
    assert shell.wait_end() == 7


def test_a_terminal_alone_is_not_typed_on(served: Served) -> None:
    served.fleet.put("web")
    with at_terminal("exec", "-t", "web", "shell", environment=environment(served), size=(5, 6)) as shell:
        shell.wait_seen("size 5x6")
        assert shell.modes() == shell.modes_before
        assert shell.wait_end() == 7
    assert (served.fleet.commands[-1].command.has_stdin, served.fleet.commands[-1].command.tty is None) == (
        False,
        False,
    )


def test_stdin_that_is_no_terminal_is_refused_before_anything_runs(served: Served) -> None:
    served.fleet.put("web")
    command = [sys.executable, "-m", "ramet.cli", "exec", "-it", "web", "shell"]
    done = subprocess.run(
        command, env=environment(served), stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, b"")
    told = b"Error: The input device is not a terminal [not_a_terminal]\n  leave -t out, or -i\n"
    assert done.stderr == told
    assert served.fleet.commands == []


def test_output_of_a_terminal_may_go_elsewhere(served: Served, tmp_path: Path) -> None:
    served.fleet.put("web")
    keyboard, line = pty.openpty()
    with (tmp_path / "out").open("wb") as out:
        command = [sys.executable, "-m", "ramet.cli", "exec", "-it", "web", "shell"]
        with subprocess.Popen(command, env=environment(served), stdin=line, stdout=out) as process:
            os.write(keyboard, b"exit\r")
            assert process.wait(60) == 7
    os.close(keyboard)
    os.close(line)
    assert (tmp_path / "out").read_bytes().startswith(b"size ")
