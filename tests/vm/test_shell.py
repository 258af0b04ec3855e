"""A person at a terminal, with a shell in a real guest."""

from collections.abc import Iterator

import pytest

from tests.cli.pseudo_terminal import PseudoTerminal, at_terminal
from tests.vm.daemon import Daemon

pytestmark = pytest.mark.vm


@pytest.fixture
def shell(served: Daemon) -> Iterator[PseudoTerminal]:
    """Return a terminal with a shell of the guest on it."""
    with at_terminal("exec", "-it", "web", "sh", environment=served.environment, size=(33, 101)) as shell:
        shell.wait_seen("# ")
        yield shell


def test_a_shell_has_the_size_of_the_window_and_follows_it(shell: PseudoTerminal) -> None:
    shell.type("tty; stty size\r")
    shell.wait_seen("/dev/pts/")
    shell.wait_seen("33 101")
    for rows, cols in [(50, 132), (10, 20), (24, 80)]:
        shell.resize(rows, cols)
        # The new size overtakes what is typed, or is behind it: so ask until it is there.
        shell.type(f"until [ \"$(stty size)\" = '{rows} {cols}' ]; do sleep 0.1; done; echo si''ze {rows}\r")
        shell.wait_seen(f"size {rows}")
    shell.type("exit 7\r")
    assert shell.wait_end() == 7
    assert shell.modes() == shell.modes_before


def test_a_program_on_the_whole_screen_is_told_of_another_size(served: Daemon) -> None:
    script = "trap 'stty size; exit 6' WINCH; echo ready; while :; do sleep 0.1; done"
    command = ("exec", "-it", "web", "sh", "-c", script)
    with at_terminal(*command, environment=served.environment) as program:
        program.wait_seen("ready")
        program.resize(51, 133)
        program.wait_seen("51 133")
        assert program.wait_end() == 6


def test_control_c_interrupts_what_runs_and_leaves_the_shell(served: Daemon, shell: PseudoTerminal) -> None:
    shell.type("sleep 1234; echo co''de $?\r")
    # Busybox's shell loses a Ctrl-C that strikes between its fork and the exec of the command.
    served.sh("web", "until ps -o args | grep -q '^sleep 123[4]'; do sleep 0.1; done")
    shell.type("\x03")
    shell.wait_seen("^C")
    shell.wait_seen("# ")
    shell.type("echo al''ive\r")
    shell.wait_seen("alive")
    shell.wait_seen("# ")
    shell.type("\x04")
    shell.wait_end()
    assert shell.modes() == shell.modes_before


def test_a_terminal_that_hangs_up_takes_the_commands_along(served: Daemon, shell: PseudoTerminal) -> None:
    shell.type("sleep 4321\r")
    served.sh("web", "until ps -o args | grep -q 'sleep 432[1]'; do sleep 0.1; done")
    assert shell.process is not None
    shell.process.terminate()
    assert shell.wait_end() == 128 + 15
    served.sh("web", "while ps -o args | grep -q 'sleep 432[1]'; do sleep 0.1; done")


def test_a_command_without_stdin_still_has_a_terminal(served: Daemon) -> None:
    command = ("exec", "-t", "web", "sh", "-c", "tty; stty size; exit 3")
    with at_terminal(*command, environment=served.environment, size=(5, 60)) as terminal:
        terminal.wait_seen("/dev/pts/")
        terminal.wait_seen("5 60")
        assert terminal.wait_end() == 3


def test_a_command_that_does_not_exist_says_so_and_gives_the_terminal_back(served: Daemon) -> None:
    with at_terminal("exec", "-it", "web", "/no/such", environment=served.environment) as terminal:
        terminal.wait_seen("command not found\r\n")
        assert terminal.wait_end() == 127
        assert terminal.modes() == terminal.modes_before
