"""`ramet pull` and what `ramet run` and `ramet image list` tell of pulls, against a served stand-in."""

import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from ramet.images import LINUX_AMD64, Credentials, PullStatus, PullView, parse_reference
from ramet.images.errors import RegistryDenied
from tests.api.stand_in import Served
from tests.api.stand_in_images import image
from tests.cli.pseudo_terminal import at_terminal

NAME = "docker.io/library/app:latest"
DENIED = RegistryDenied("it does not let us", remedy="docker login")
LAYER_BYTES = 10_000_000


def view(status: PullStatus, layers_done: int = 0, queue_position: int | None = None) -> PullView:
    """Return how a pull of two layers is under way."""
    return PullView(
        parse_reference(NAME),
        LINUX_AMD64,
        status,
        image(NAME, ()).digest,
        queue_position,
        DENIED if status is PullStatus.FAILED else None,
        datetime(2026, 1, 2, tzinfo=UTC),
        {},
        2,
        layers_done,
        2 * LAYER_BYTES,
        layers_done * LAYER_BYTES,
    )


def stages() -> list[PullView]:
    return [
        view(PullStatus.PENDING, queue_position=2),
        view(PullStatus.PULLING),
        view(PullStatus.PULLING, layers_done=1),
        view(PullStatus.CONVERTING, layers_done=2),
    ]


def environment(served: Served) -> dict[str, str]:
    return {**os.environ, "RAMET_HOST": served.unix_url}


def ramet(served: Served, *arguments: str, stdin: str = "") -> tuple[int, str, Sequence[str]]:
    """Run a command without a terminal; return its exit code, stdout, and the lines of stderr."""
    command = [sys.executable, "-m", "ramet.cli", *arguments]
    done = subprocess.run(
        command, env=environment(served), input=stdin, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr.splitlines()


def test_without_a_terminal_each_change_is_a_line_and_the_name_the_output(served: Served) -> None:
    served.catalog.pulls.stages = stages()
    assert ramet(served, "pull", "app") == (
        0,
        f"{NAME}\n",
        [
            f"{NAME}: pending",
            f"{NAME}: pulling 0/2 layers",
            f"{NAME}: pulling 1/2 layers",
            f"{NAME}: converting",
        ],
    )


def test_a_quiet_pull_prints_the_digest_alone(served: Served) -> None:
    served.catalog.pulls.stages = stages()
    assert ramet(served, "pull", "-q", "app") == (0, f"{image(NAME, ()).digest}\n", [])


def test_on_a_terminal_there_is_a_bar(served: Served) -> None:
    served.catalog.pulls.stages = stages()
    with at_terminal("pull", "app", environment=environment(served), size=(24, 200)) as terminal:
        terminal.wait_seen("app asking the registry")
        terminal.wait_seen("app pending, number 2 in line")
        terminal.wait_seen("app pulling 1/2 layers")
        terminal.wait_seen("10.0/20.0 MB")
        terminal.wait_seen("app converting 2/2 layers")
        terminal.wait_seen("app ready")
        terminal.wait_seen("20.0/20.0 MB")
        assert terminal.wait_end() == 0
        assert terminal.seen.endswith(f"{NAME}\r\n".encode())


def test_a_pull_that_fails_says_why_and_does_not_look_ready(served: Served) -> None:
    served.catalog.pulls.stages = [view(PullStatus.PULLING), view(PullStatus.FAILED)]
    with at_terminal("pull", "app", environment=environment(served), size=(24, 200)) as terminal:
        assert terminal.wait_end() == 1
        assert b"Error: app could not be pulled: it does not let us (docker login)" in terminal.seen
        assert b"ready" not in terminal.seen


def test_an_interrupted_pull_says_that_the_server_goes_on(served: Served) -> None:
    served.catalog.pulls.stages = [view(PullStatus.PULLING)] * 10_000
    with at_terminal("pull", "app", environment=environment(served), size=(24, 200)) as terminal:
        terminal.wait_seen("app pulling")
        terminal.type("\x03")
        assert terminal.wait_end() == 130
        assert b"The server goes on pulling app: ramet image list" in terminal.seen


def test_run_says_that_an_image_has_to_be_pulled(served: Served) -> None:
    served.catalog.pulls.offered.add(NAME)
    exit_code, _, err = ramet(served, "run", "--name", "web", "app")
    assert (exit_code, err) == (0, ["app is not on the server; pulling it"])
    assert ramet(served, "run", "--name", "web-2", NAME)[2] == []


def test_images_under_way_are_listed_with_how_far_they_are(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [view(PullStatus.PULLING, layers_done=1), view(PullStatus.FAILED)]
    monkeypatch.setattr(served.catalog.pulls, "list", lambda: found)
    _, out, _ = ramet(served, "image", "list")
    column = out.index("STATUS")
    assert [line[column:].partition("   ")[0] for line in out.splitlines()] == [
        "STATUS",
        "ready",
        "pulling 50%",
        "failed: registry_denied",
    ]


def test_a_login_for_one_pull(served: Served) -> None:
    served.catalog.pulls.offered.add(NAME)
    login = ("--username", "bob", "--password-stdin")
    assert ramet(served, "pull", *login, NAME, stdin="secret\n")[:2] == (0, f"{NAME}\n")
    assert served.catalog.pulls.asked == [(NAME, Credentials("bob", "secret"))]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--password-stdin",), "Error: A password is somebody's: give --username, too."),
        (("--username", "bob"), "Error: Give the password of --username with --password-stdin."),
    ],
)
def test_half_a_login_is_refused(served: Served, option: tuple[str, ...], message: str) -> None:
    exit_code, _, err = ramet(served, "pull", *option, "app", stdin="secret\n")
    assert (exit_code, err[-1]) == (2, message)
    assert served.catalog.pulls.asked == []


def test_a_password_is_asked_for_on_a_terminal_and_not_shown(served: Served) -> None:
    served.catalog.pulls.offered.add(NAME)
    arguments = ("pull", "--username", "bob", NAME)
    with at_terminal(*arguments, environment=environment(served)) as terminal:
        terminal.wait_seen("Password: ")
        terminal.type("secret\r")
        assert terminal.wait_end() == 0
        assert b"secret" not in terminal.seen
    assert served.catalog.pulls.asked == [(NAME, Credentials("bob", "secret"))]
