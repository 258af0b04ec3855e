"""What was done to an instance can be read in its own log."""

from dataclasses import replace
from pathlib import Path

from ramet.core.ids import InstanceId
from ramet.core.spec import Exit, InstanceIdentity, InstanceRecord, InstanceSpec, Runtime, State
from ramet.logs.operations import Operations

SPEC = InstanceSpec("demo:1", "sha256:0", "fake", 1, 1 << 20, 1 << 20)
IDENTITY = InstanceIdentity(InstanceId("i"), "web", None, "0" * 32, 0.0)
RECORD = InstanceRecord(SPEC, IDENTITY, State.INITIALIZING)


def words(folder: Path) -> list[str]:
    """Return the lines without their times."""
    return [line.partition("Z ")[2] for line in (folder / "i" / "operations.log").read_text().splitlines()]


def test_a_life_is_told_from_creation_to_exit_code(tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    operations = Operations(tmp_path)
    running = replace(RECORD, state=State.RUNNING, runtime=Runtime(17, 1, "boot"))
    stopped = replace(RECORD, state=State.STOPPED, exit=Exit(3, message="no more work"))
    for record in (RECORD, running, replace(running, generation=9), stopped):
        operations.tell(record)
    operations.note(IDENTITY.id, "forked", child="copy")
    operations.tell(replace(stopped, is_deleting=True))
    assert words(tmp_path) == [
        "created name=web image=demo:1",
        "Initializing",
        "Running pid=17",
        'Stopped code=3 message="no more work"',
        "forked child=copy",
        "being deleted",
    ]


def test_a_fork_tells_whose_and_an_error_stays_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    child = replace(RECORD, identity=replace(IDENTITY, parent=InstanceId("p")))
    operations = Operations(tmp_path)
    operations.tell(child)
    operations.tell(replace(child, state=State.UNKNOWN, state_error="it\nbroke"))
    assert words(tmp_path) == [
        "created name=web image=demo:1 forked_from=p",
        "Initializing",
        'Unknown error="it broke"',
    ]


def test_a_restarted_daemon_goes_on_in_the_same_log(tmp_path: Path) -> None:
    (tmp_path / "i").mkdir()
    Operations(tmp_path).tell(RECORD)
    Operations(tmp_path).tell(replace(RECORD, state=State.RUNNING))
    assert words(tmp_path)[-1] == "daemon restarted state=Running"


def test_an_instance_without_a_folder_is_not_told_of(tmp_path: Path) -> None:
    Operations(tmp_path).tell(RECORD)
    assert list(tmp_path.iterdir()) == []
