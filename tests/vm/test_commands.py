"""Commands in guests, and the workload's own: what they are given, and how their ends are told."""

from pathlib import Path

import anyio
import pytest

from ramet.core.spec import Exit, State
from tests.vm.images import write_image
from tests.vm.site import Children, Site

pytestmark = [pytest.mark.vm, pytest.mark.anyio]


async def test_stdout_stderr_and_exit_code_of_a_command_come_apart(site: Site, source: str) -> None:
    done = await site.run(source, "sh", "-c", "cat; echo err >&2; exit 7", stdin=b"in \xf5\x9d\xc2\x00")

    assert (done.stdout, done.stderr, done.exit_code) == (b"in \xf5\x9d\xc2\x00", b"err\n", 7)


async def test_a_megabyte_through_a_command_comes_back_whole(site: Site, source: str) -> None:
    data = bytes(range(256)) * 4096

    done = await site.run(source, "cat", stdin=data)

    assert done.exit_code == 0
    assert done.stdout == data


async def test_a_command_that_does_not_exist_ends_with_127_and_says_so(site: Site, source: str) -> None:
    done = await site.run(source, "nonesuch", "argument")

    assert done.exit_code == 127
    assert b"nonesuch: command not found" in done.stderr


async def test_a_command_that_cannot_be_executed_ends_with_126(site: Site, source: str) -> None:
    done = await site.run(source, "/etc/passwd")

    assert done.exit_code == 126
    assert b"/etc/passwd" in done.stderr


async def test_a_command_killed_by_a_signal_ends_as_a_shell_tells_it(site: Site, source: str) -> None:
    assert (await site.run(source, "sh", "-c", "kill -9 $$")).exit_code == 128 + 9


@pytest.fixture
def ended(site: Site, children: Children) -> Children:
    """Return `children`, for instances that were booted and are to go with the test."""
    return children


async def test_the_end_of_the_workload_is_the_end_of_the_instance(site: Site, ended: Children) -> None:
    commands = {
        "ends-well": ("sh", "-c", "echo done"),
        "ends-badly": ("sh", "-c", "exit 3"),
        "is-killed": ("sh", "-c", "kill -9 $$"),
        "is-absent": ("/bin/nonesuch",),
        "is-no-program": ("/etc/passwd",),
    }
    ended.names.extend(commands)
    async with anyio.create_task_group() as group:
        for name, command in commands.items():
            group.start_soon(site.fleet.create, name, site.spec(command))
    ends: dict[str, Exit] = {}
    for name in commands:
        await site.fleet.wait(name, State.STOPPED, 60.0)
        record = site.fleet.get(name).record
        assert (record.state, record.runtime) == (State.STOPPED, None)
        assert record.exit is not None, record.state_error
        ends[name] = record.exit

    assert {name: (end.code, end.signal) for name, end in ends.items()} == {
        "ends-well": (0, None),
        "ends-badly": (3, None),
        "is-killed": (None, 9),
        "is-absent": (127, None),
        "is-no-program": (126, None),
    }
    assert "/bin/nonesuch" in ends["is-absent"].message
    assert "/etc/passwd" in ends["is-no-program"].message
    lines = [line async for line in site.fleet.logs("ends-well", source="app", tail=10, follow=False)]
    assert lines == ["done"]


async def test_user_folder_environment_and_entrypoint_of_the_image_are_honoured(
    site: Site, ended: Children, tmp_path: Path
) -> None:
    script = b'#!/bin/sh\necho "$0 $*"; id -u; id -g; pwd; echo "$COLOUR"; exec sleep 100000\n'
    write_image(
        tmp_path / "image",
        {
            "Entrypoint": ["/bin/tell", "first"],
            "Cmd": ["second"],
            "User": "guest",
            "WorkingDir": "/home/guest",
            "Env": ["PATH=/bin", "COLOUR=dark green"],
        },
        {"bin/tell": (0o755, script)},
    )
    image = await site.parts.images.import_path(tmp_path / "image", name="telling:1")
    ended.names.append("telling")

    await site.fleet.create("telling", site.spec(digest=image.digest))

    await site.wait_for("telling", "pidof sleep")
    lines = [line async for line in site.fleet.logs("telling", source="app", tail=10, follow=False)]
    assert lines == ["/bin/tell first second", "1234", "2345", "/home/guest", "dark green"]
    # A command run inside begins with the same.
    assert (await site.sh("telling", "id -u; pwd; echo $COLOUR")).split("\n")[:3] == [
        "1234",
        "/home/guest",
        "dark green",
    ]
