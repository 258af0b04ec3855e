"""The fake is stricter than Cloud Hypervisor: what it lets pass, Cloud Hypervisor takes."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.vmm.cloud_hypervisor_bench import PROGRAM
from tests.vmm.fake_cloud_hypervisor.api import ENDPOINTS, PREFIX
from tests.vmm.fake_cloud_hypervisor.program import NEWEST, VERSION_VARIABLE
from tests.vmm.fake_process import (
    BAD_REQUEST,
    NO_CONTENT,
    NOT_FOUND,
    OK,
    SERVER_ERROR,
    Answer,
    FakeProcess,
)

MEMORY_BYTES = 6 << 20
SNAPSHOT = "snapshot"
MACHINE: dict[str, Any] = {
    "cpus": {"boot_vcpus": 1, "max_vcpus": 1},
    "memory": {"size": 0, "zones": [{"id": "ram", "size": MEMORY_BYTES}]},
    "payload": {"kernel": "/dev/null"},
    "disks": [
        {"id": "overlay", "path": "overlay.raw", "image_type": "Raw"},
        {"id": "config", "path": "config.img", "readonly": True},
    ],
    "vsock": {"cid": 3, "socket": "agent.vsock"},
}


class Process(FakeProcess):
    """One fake Cloud Hypervisor."""

    def __init__(self, folder: Path, version: str) -> None:
        super().__init__(
            folder,
            [PROGRAM, "--api-socket", "path=api.sock", "--event-monitor", "path=events.json"],
            {VERSION_VARIABLE: version},
        )

    def act(self, action: str, body: object = None, fds: tuple[int, ...] = ()) -> Answer:
        method = ENDPOINTS[action].method if action in ENDPOINTS else "PUT"
        return self.ask(method, PREFIX + action, body, fds)

    def done(self, action: str, body: object = None) -> None:
        """Have something done that is not to be refused."""
        assert self.act(action, body) == (NO_CONTENT, None)

    def refused(self, action: str, body: object = None, status: int = SERVER_ERROR) -> str:
        """Ask for what is to be refused; returns why it was."""
        found, answer = self.act(action, body)
        assert found == status, answer
        assert isinstance(answer, list)
        return ": ".join(answer)

    @property
    def state(self) -> str:
        status, answer = self.act("vm.info")
        return str(answer["state"]) if status == OK else "None"

    def boot(self) -> None:
        self.make_disks()
        self.done("vm.create", MACHINE)
        self.done("vm.boot")

    def snapshot(self) -> None:
        """Store a snapshot of a machine that runs, which stands still then."""
        (self.folder / SNAPSHOT).mkdir()
        self.done("vm.pause")
        self.done("vm.snapshot", {"destination_url": f"file://{SNAPSHOT}"})

    def lend(self, child: "Process") -> dict[str, object]:
        """Have `child` have disks like ours; returns the body by which it loads our snapshot."""
        child.make_disks()
        return {"source_url": f"file://{self.folder / SNAPSHOT}"}

    def rewrite(self, file: str, change: Callable[[Any], None]) -> None:
        """Change one file of the snapshot."""
        path = self.folder / SNAPSHOT / file
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))


Start = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    made: list[Process] = []

    def new(version: str = NEWEST) -> Process:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Process(folder, version))
        return made[-1]

    yield new
    for each in made:
        each.end()


def without(part: str) -> dict[str, Any]:
    return {name: value for name, value in MACHINE.items() if name != part}


def test_it_says_what_it_is(start: Start) -> None:
    vmm = start("52.0")
    status, answer = vmm.act("vmm.ping")
    assert (status, answer["build_version"], answer["pid"]) == (OK, "v52.0", vmm.process.pid)
    assert vmm.state == "None"


@pytest.mark.parametrize(
    ("action", "body", "status", "message"),
    [
        ("vm.create", {"cpus": {"boot_vcpus": 1}}, BAD_REQUEST, "missing field `max_vcpus`"),
        ("vm.create", MACHINE | {"colour": 1}, BAD_REQUEST, "unknown field `colour`"),
        ("vm.create", MACHINE | {"disks": [{"id": "a", "size": 1}]}, BAD_REQUEST, "unknown field `size`"),
        ("vm.create", MACHINE | {"disks": {}}, BAD_REQUEST, "expected a sequence"),
        ("vm.create", MACHINE | {"serial": {"mode": "Loud"}}, BAD_REQUEST, "unknown variant `Loud`"),
        ("vm.create", MACHINE | {"watchdog": 1}, BAD_REQUEST, "invalid value of `watchdog`"),
        ("vm.create", [], BAD_REQUEST, "expected an object"),
        ("vm.create", None, BAD_REQUEST, "Bad Request"),
        ("vm.boot", {}, BAD_REQUEST, "Bad Request"),
        ("vm.fly", {}, NOT_FOUND, "Not Found"),
        ("vm.info", None, NOT_FOUND, "not created"),
        ("vm.boot", None, NOT_FOUND, "not created"),
        ("vm.add-net", {"id": "nic", "tap": "lo"}, NOT_FOUND, "not created"),
        ("vm.pause", None, SERVER_ERROR, "not running"),
        ("vm.resume", None, SERVER_ERROR, "not running"),
        ("vm.snapshot", {"destination_url": "file://."}, SERVER_ERROR, "not paused"),
        ("vm.restore", {"source_url": "."}, SERVER_ERROR, "not a directory"),
        ("vm.restore", {"source_url": "file://nowhere"}, SERVER_ERROR, "not a directory"),
        ("vm.restore", {"source_url": "file://."}, SERVER_ERROR, "Cannot restore"),
    ],
)
def test_what_it_does_not_know_or_not_now_it_refuses(
    start: Start, action: str, body: object, status: int, message: str
) -> None:
    vmm = start()
    assert message in vmm.refused(action, body, status)
    assert vmm.state == "None"


@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
def test_each_action_is_asked_for_by_one_method(start: Start, method: str) -> None:
    assert start().ask(method, f"{PREFIX}vm.pause") == (BAD_REQUEST, ["Error from API", "Bad Request"])


def test_what_is_not_of_the_api_is_not_found(start: Start) -> None:
    assert start().ask("GET", "/vmm.ping")[0] == NOT_FOUND


def test_a_body_that_is_too_long_is_refused(start: Start) -> None:
    assert start().act("vm.create", MACHINE | {"payload": {"cmdline": "x" * 51_200}})[0] == BAD_REQUEST


@pytest.mark.parametrize(
    ("version", "action", "body", "field"),
    [
        ("51.0", "vm.restore", {"memory_restore_mode": "OnDemand"}, "memory_restore_mode"),
        ("51.0", "vm.restore", {"resume": True}, "resume"),
        ("51.0", "vm.create", {"disks": [{"lock_granularity": "Full"}]}, "lock_granularity"),
        (
            "52.0",
            "vm.create",
            {"memory": {"size": 0, "zones": [{"id": "r", "size": 1, "reserve": True}]}},
            "reserve",
        ),
    ],
)
def test_an_older_one_knows_less(
    start: Start, version: str, action: str, body: dict[str, object], field: str
) -> None:
    needed = {"source_url": "file://nowhere"} if action == "vm.restore" else MACHINE
    assert f"unknown field `{field}`" in start(version).refused(action, needed | body, BAD_REQUEST)
    _, newer = start(NEWEST).act(action, needed | body)
    assert newer is None or "unknown field" not in ": ".join(newer)


def test_it_is_created_booted_paused_and_resumed_in_that_order(start: Start) -> None:
    vmm = start()
    vmm.make_disks()
    vmm.done("vm.create", MACHINE)
    assert vmm.state == "Created"
    assert "already created" in vmm.refused("vm.create", MACHINE)
    assert "already created" in vmm.refused("vm.restore", {"source_url": "file://."})
    vmm.done("vm.boot")
    assert vmm.state == "Running"
    assert "already created" in vmm.refused("vm.boot")
    assert "from Running to Running" in vmm.refused("vm.resume")
    vmm.done("vm.pause")
    assert vmm.state == "Paused"
    assert "from Paused to Paused" in vmm.refused("vm.pause")
    vmm.done("vm.resume")
    vmm.done("vm.delete")
    assert vmm.state == "None"
    vmm.done("vm.create", MACHINE)


@pytest.mark.parametrize(
    ("machine", "message"),
    [
        (without("payload"), "without a kernel"),
        (MACHINE | {"payload": {"kernel": "/nowhere"}}, "Cannot open /nowhere"),
        (MACHINE | {"disks": [{"id": "overlay", "path": "nowhere"}]}, "Cannot open nowhere"),
        (MACHINE | {"net": [{"id": "nic", "tap": "nowhere0"}]}, "Cannot open TAP"),
    ],
)
def test_a_boot_needs_its_files_and_its_tap(start: Start, machine: dict[str, Any], message: str) -> None:
    vmm = start()
    vmm.make_disks()
    vmm.done("vm.create", machine)
    assert message in vmm.refused("vm.boot")
    assert vmm.state == "Created"


def test_memory_is_in_one_zone(start: Start) -> None:
    vmm = start()
    vmm.make_disks()
    vmm.done("vm.create", MACHINE | {"memory": {"size": MEMORY_BYTES, "zones": []}})
    assert "in one zone" in vmm.refused("vm.boot")


def test_a_disk_that_another_writes_to_is_not_opened(start: Start) -> None:
    vmm, other = start(), start()
    vmm.boot()
    other.make_disks()
    (other.folder / "overlay.raw").unlink()
    (other.folder / "overlay.raw").symlink_to(vmm.folder / "overlay.raw")
    other.done("vm.create", MACHINE)
    assert "locked" in other.refused("vm.boot")


def test_a_network_card_has_a_name_or_a_descriptor_of_a_tap_before_the_boot(start: Start) -> None:
    vmm = start()
    vmm.make_disks()
    vmm.done("vm.create", MACHINE)
    assert "either" in vmm.refused("vm.add-net", {"id": "nic"})
    fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    status, answer = vmm.act("vm.add-net", {"id": "nic", "tap": "lo"}, (fd,))
    assert (status, answer[1]) == (SERVER_ERROR, "either a TAP's name or its descriptors")
    assert vmm.act("vm.add-net", {"id": "nic"}, (fd,)) == (NO_CONTENT, None)
    os.close(fd)
    assert "not unique" in vmm.refused("vm.add-net", {"id": "nic", "tap": "lo"})
    assert "something else" in vmm.refused("vm.boot")


def test_a_snapshot_is_taken_of_a_paused_machine_and_into_an_empty_folder_only(start: Start) -> None:
    vmm = start()
    vmm.boot()
    assert "not paused" in vmm.refused("vm.snapshot", {"destination_url": "file://."})
    vmm.snapshot()
    files = {path.name: path.stat().st_size for path in (vmm.folder / SNAPSHOT).iterdir()}
    assert files.keys() == {"config.json", "state.json", "memory-ranges"}
    assert files["memory-ranges"] == MEMORY_BYTES
    assert "File exists" in vmm.refused("vm.snapshot", {"destination_url": f"file://{SNAPSHOT}"})


def test_a_loaded_machine_stands_still_until_it_is_resumed(start: Start) -> None:
    taken, child = start(), start()
    taken.boot()
    taken.snapshot()
    child.done("vm.restore", taken.lend(child))
    assert child.state == "Paused"
    child.done("vm.resume")
    assert child.state == "Running"


def test_a_newer_one_resumes_what_it_loads_if_it_is_told_to(start: Start) -> None:
    taken, child = start(), start()
    taken.boot()
    taken.snapshot()
    child.done("vm.restore", taken.lend(child) | {"resume": True})
    assert child.state == "Running"


def test_memory_that_is_not_what_it_was_is_not_run(start: Start) -> None:
    taken, child = start(), start()
    taken.boot()
    taken.snapshot()
    with (taken.folder / SNAPSHOT / "memory-ranges").open("r+b") as memory:
        memory.seek(-1, os.SEEK_END)
        memory.write(b"\1")
    child.done("vm.restore", taken.lend(child))
    assert "is not what it was" in child.refused("vm.resume")
    assert child.process.wait() == 1


def part(content: Any, name: str) -> Any:
    return json.loads(content["snapshots"][name]["snapshot_data"]["state"])


def put_part(content: Any, name: str, changed: Any) -> None:
    content["snapshots"][name]["snapshot_data"]["state"] = json.dumps(changed)


def other_zone(content: Any) -> None:
    content["memory"]["zones"][0]["id"] = "rom"


def no_memory(content: Any) -> None:
    memory = part(content, "memory-manager")
    put_part(content, "memory-manager", memory | {"memory_ranges": {"data": []}})


def no_disk(content: Any) -> None:
    content["disks"][0]["path"] = "nowhere"


def needs_tap(content: Any) -> None:
    content["net"] = [{"id": "nic", "fds": [-1]}]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", other_zone, "the memory is elsewhere"),
        ("config.json", no_disk, "Cannot open nowhere"),
        ("config.json", needs_tap, "needs descriptors"),
        ("state.json", no_memory, "what is to be copied"),
        ("state.json", lambda content: content["snapshots"].pop("memory-manager"), "Cannot restore"),
    ],
)
def test_a_snapshot_that_makes_no_sense_is_not_loaded_and_another_may_be(
    start: Start, file: str, change: Callable[[Any], None], message: str
) -> None:
    taken, child = start(), start()
    taken.boot()
    taken.snapshot()
    body, whole = taken.lend(child), (taken.folder / SNAPSHOT / file).read_text()
    taken.rewrite(file, change)
    assert message in child.refused("vm.restore", body)
    assert child.state == "None"
    (taken.folder / SNAPSHOT / file).write_text(whole)
    child.done("vm.restore", body)


def test_a_snapshot_of_another_version_is_not_loaded(start: Start) -> None:
    taken, other = start(), start("52.0")
    taken.boot()
    taken.snapshot()
    assert "a state of version 53.0" in other.refused("vm.restore", taken.lend(other))


def test_as_many_descriptors_come_with_a_load_as_it_says(start: Start) -> None:
    taken, child = start(), start()
    taken.boot()
    taken.snapshot()
    body = taken.lend(child) | {"net_fds": [{"id": "nic", "num_fds": 1}]}
    assert "Bad Request" in child.refused("vm.restore", body, BAD_REQUEST)


def test_two_ways_of_filling_the_memory_exclude_each_other(start: Start) -> None:
    taken, child = start(), start()
    taken.boot()
    taken.snapshot()
    body = taken.lend(child) | {"memory_restore_mode": "OnDemand", "prefault": True}
    assert "cannot be combined" in child.refused("vm.restore", body)


def test_what_happens_is_told_to_whoever_reads_its_events(start: Start) -> None:
    vmm = start()
    vmm.boot()
    vmm.done("vmm.shutdown")
    assert vmm.process.wait() == 0
    events = (vmm.folder / "events.json").read_text()
    assert [json.loads(each)["event"] for each in events.split("\n\n") if each] == ["booted", "shutdown"]
    assert not (vmm.folder / "api.sock").exists()


@pytest.mark.parametrize("version", ["52.0", NEWEST])
def test_a_name_of_its_socket_that_another_uses_is_refused(start: Start, version: str) -> None:
    vmm = start(version)
    vmm.act("vmm.ping")
    assert start_in(vmm.folder, version).wait() == 1
    assert vmm.act("vmm.ping")[0] == OK


def test_a_name_that_one_has_left_is_taken_by_a_newer_one_and_refused_by_an_older_one(start: Start) -> None:
    vmm = start("52.0")
    vmm.act("vmm.ping")
    vmm.end()
    assert (vmm.folder / "api.sock").is_socket()
    assert start_in(vmm.folder, "52.0").wait() == 1
    again = Process(vmm.folder, NEWEST)
    assert again.act("vmm.ping")[0] == OK
    again.end()


def start_in(folder: Path, version: str) -> subprocess.Popen[bytes]:
    argv = [str(PROGRAM), "--api-socket", "path=api.sock"]
    return subprocess.Popen(
        argv, cwd=folder, stderr=subprocess.DEVNULL, env=os.environ | {VERSION_VARIABLE: version}
    )
