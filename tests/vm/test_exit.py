"""How a workload ended is told in words: by a signal, for want of memory, or as there was none to run."""

from collections.abc import Iterator

import pytest

from ramet.wire_api.instances import CreateInstance, Instance
from tests.vm.daemon import Daemon
from tests.vm.images import IMAGE

pytestmark = pytest.mark.vm

NAME = "ending"
# The kernel's own killer, called for: a guest that really fills its memory may live for minutes, ever slower.
IS_KILLED_FOR_MEMORY = "echo f >/proc/sysrq-trigger; while :; do :; done"


@pytest.fixture
def daemon(served: Daemon) -> Iterator[Daemon]:
    yield served
    served.client.delete(NAME)


def ended(daemon: Daemon, *command: str) -> Instance:
    """Run a workload to its end."""
    body = CreateInstance(
        name=NAME, image=IMAGE, size="128MB", overlay_size="64MB", vcpus=1, entrypoint=(), cmd=command
    )
    daemon.client.create(body)
    assert daemon.client.wait(NAME, "Stopped", "2m").state == "Stopped"
    return daemon.client.get(NAME)


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        (("sh", "-c", "exit 3"), 3, None),
        (("sh", "-c", "kill -9 $$"), 137, "killed by signal 9 (SIGKILL)"),
        (("sh", "-c", IS_KILLED_FOR_MEMORY), 137, "killed by signal 9 (SIGKILL) - OOM"),
        (("nothing-like-that",), 127, "nothing-like-that: No such file or directory (os error 2)"),
    ],
    ids=["by itself", "by a signal", "out of memory", "not found"],
)
def test_it_is_told_how_a_workload_ended(
    daemon: Daemon, command: tuple[str, ...], code: int, message: str | None
) -> None:
    found = ended(daemon, *command)
    assert (found.exit_code, found.exit_message) == (code, message)
