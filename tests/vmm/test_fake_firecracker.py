"""The fake is as strict as Firecracker: what it lets pass, Firecracker takes."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ramet.linux.memfd import SealableFile
from tests.vmm.fake_firecracker.memory import PAGE_BYTES
from tests.vmm.fake_firecracker.program import NEWEST, VERSION_VARIABLE
from tests.vmm.fake_process import BAD_REQUEST, NO_CONTENT, OK, Answer, FakeProcess
from tests.vmm.firecracker_bench import PROGRAM

MEMORY_MIB = 6


class Process(FakeProcess):
    """One fake Firecracker."""

    def __init__(self, folder: Path, version: str) -> None:
        super().__init__(
            folder, [PROGRAM, "--id", "test", "--api-sock", "api.sock"], {VERSION_VARIABLE: version}
        )

    def put(self, path: str, **body: object) -> Answer:
        return self.ask("PUT", path, body)

    def refused(self, method: str, path: str, body: object = None) -> str:
        """Ask for what is to be refused; returns why it was."""
        status, answer = self.ask(method, path, body)
        assert status == BAD_REQUEST
        assert answer.keys() == {"fault_message"}
        return str(answer["fault_message"])

    def boot(self, *, track_dirty_pages: bool = True) -> None:
        self.make_disks()
        machine = {"vcpu_count": 1, "mem_size_mib": MEMORY_MIB, "track_dirty_pages": track_dirty_pages}
        assert self.put("/machine-config", **machine) == (NO_CONTENT, None)
        assert self.put("/boot-source", kernel_image_path="/dev/null")[0] == NO_CONTENT
        for name in ("overlay.raw", "config.img"):
            drive = {"drive_id": name.partition(".")[0], "is_root_device": False, "path_on_host": name}
            assert self.ask("PUT", f"/drives/{drive['drive_id']}", drive)[0] == NO_CONTENT
        assert self.put("/vsock", guest_cid=3, uds_path="agent.vsock")[0] == NO_CONTENT
        assert self.put("/actions", action_type="InstanceStart")[0] == NO_CONTENT

    def snapshot(self, kind: str, memory: str) -> Answer:
        return self.put("/snapshot/create", snapshot_type=kind, snapshot_path="state", mem_file_path=memory)

    def snapshot_files(self) -> dict[str, str]:
        """Return the body that loads what `snapshot` stored."""
        return {"snapshot_path": f"{self.folder}/state", "mem_file_path": f"{self.folder}/memory"}


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


def test_it_says_what_it_is(start: Start) -> None:
    vmm = start("1.12.1")
    assert vmm.ask("GET", "/version") == (OK, {"firecracker_version": "1.12.1"})
    status, answer = vmm.ask("GET", "/")
    assert (status, answer["state"], answer["id"]) == (OK, "Not started", "test")


@pytest.mark.parametrize(
    ("method", "path", "body", "message"),
    [
        ("PUT", "/machine-config", {"vcpu_count": 1}, "missing field `mem_size_mib`"),
        ("PUT", "/machine-config", {"vcpu_count": 1, "mem_size_mib": 1, "cores": 2}, "unknown field `cores`"),
        ("PUT", "/machine-config", {"vcpu_count": "1", "mem_size_mib": 1}, "invalid value of `vcpu_count`"),
        ("PUT", "/machine-config", {"vcpu_count": 33, "mem_size_mib": 1}, "vCPU number"),
        ("PUT", "/machine-config", [], "expected an object"),
        ("PUT", "/boot-source", {"kernel_image_path": "/nowhere"}, "cannot open /nowhere"),
        ("PUT", "/drives/a", {"drive_id": "b", "is_root_device": False}, "does not match"),
        ("PUT", "/actions", {"action_type": "Fly"}, "unknown variant `Fly`"),
        ("PUT", "/actions", {"action_type": "InstanceStart"}, "without kernel"),
        ("PUT", "/network-interfaces/n", {"iface_id": "n", "host_dev_name": "nowhere0"}, "no TAP"),
        ("PATCH", "/vm", {"state": "Paused"}, "before starting"),
        ("PATCH", "/drives/overlay", {"drive_id": "overlay"}, "before starting"),
        ("PUT", "/snapshot/create", {"snapshot_path": "s", "mem_file_path": "m"}, "before starting"),
        ("PUT", "/snapshot/load", {"snapshot_path": "s"}, "exactly one of"),
        ("PUT", "/nothing", {}, "Invalid request method and/or path"),
        ("POST", "/vm", {}, "Invalid request method and/or path"),
        ("GET", "/vm", None, "Invalid request method and/or path"),
        ("GET", "/", {}, "cannot have a body"),
        ("GET", "/balloon", None, "not found"),
    ],
)
def test_what_it_does_not_know_or_not_now_it_refuses(
    start: Start, method: str, path: str, body: object, message: str
) -> None:
    vmm = start()
    assert message in vmm.refused(method, path, body)
    assert vmm.ask("GET", "/")[1]["state"] == "Not started"


@pytest.mark.parametrize(
    ("version", "path", "body", "field"),
    [
        ("1.11.0", "/snapshot/load", {"network_overrides": []}, "network_overrides"),
        ("1.12.1", "/snapshot/load", {"track_dirty_pages": True}, "track_dirty_pages"),
        ("1.15.0", "/snapshot/load", {"clock_realtime": True}, "clock_realtime"),
        ("1.15.0", "/snapshot/load", {"vsock_override": {"uds_path": "v"}}, "vsock_override"),
        (
            "1.13.0",
            "/balloon",
            {"amount_mib": 0, "deflate_on_oom": True, "free_page_hinting": True},
            "free_page",
        ),
    ],
)
def test_an_older_one_knows_less(
    start: Start, version: str, path: str, body: dict[str, object], field: str
) -> None:
    load = {"snapshot_path": "s", "mem_file_path": "m"} if path == "/snapshot/load" else {}
    assert "unknown field" in (message := start(version).refused("PUT", path, load | body))
    assert field in message
    _, newer = start(NEWEST).ask("PUT", path, load | body)
    assert newer is None or "unknown field" not in newer["fault_message"]


def test_what_is_for_before_the_start_is_refused_after_it(start: Start) -> None:
    vmm = start()
    vmm.boot()
    assert vmm.ask("GET", "/")[1]["state"] == "Running"
    for path, body in (
        ("/machine-config", {"vcpu_count": 1, "mem_size_mib": 1}),
        ("/entropy", {}),
        ("/actions", {"action_type": "InstanceStart"}),
        ("/snapshot/load", {"snapshot_path": "s", "mem_file_path": "m"}),
    ):
        assert "after starting" in vmm.refused("PUT", path, body)


def test_a_snapshot_is_taken_of_a_paused_machine_only(start: Start) -> None:
    vmm = start()
    vmm.boot()
    assert vmm.snapshot("Full", "memory")[0] == BAD_REQUEST
    assert vmm.ask("PATCH", "/vm", {"state": "Paused"})[0] == NO_CONTENT
    assert vmm.snapshot("Full", "memory")[0] == NO_CONTENT
    assert (vmm.folder / "memory").stat().st_size == MEMORY_MIB << 20


def test_a_difference_has_what_has_changed_since_the_last_snapshot(start: Start) -> None:
    vmm = start()
    vmm.boot()
    vmm.ask("PATCH", "/vm", {"state": "Paused"})
    assert vmm.snapshot("Full", "memory")[0] == NO_CONTENT
    changed = SealableFile("difference")
    assert vmm.snapshot("Diff", changed.path)[0] == NO_CONTENT
    assert changed.size_bytes == MEMORY_MIB << 20
    assert changed.resident_bytes == PAGE_BYTES  # What the snapshot itself tells the guest.
    changed.close()


def test_a_difference_without_tracking_is_refused_by_an_older_one(start: Start) -> None:
    vmm = start("1.12.1")
    vmm.boot(track_dirty_pages=False)
    vmm.ask("PATCH", "/vm", {"state": "Paused"})
    assert vmm.snapshot("Diff", "memory")[0] == BAD_REQUEST


def test_a_machine_that_was_configured_loads_no_snapshot(start: Start) -> None:
    vmm = start()
    vmm.put("/machine-config", vcpu_count=1, mem_size_mib=1)
    vmm.put("/entropy")
    message = vmm.refused("PUT", "/snapshot/load", {"snapshot_path": "s", "mem_file_path": "m"})
    assert "not allowed after configuring" in message


def test_a_load_that_fails_ends_it(start: Start) -> None:
    vmm = start()
    assert "Failed to restore" in vmm.refused(
        "PUT", "/snapshot/load", {"snapshot_path": "nowhere", "mem_file_path": "m"}
    )
    assert vmm.process.wait() == 1


def test_a_snapshot_of_another_version_is_not_loaded(start: Start) -> None:
    taken, other = start(), start("1.15.0")
    taken.boot()
    taken.ask("PATCH", "/vm", {"state": "Paused"})
    taken.snapshot("Full", "memory")
    load = taken.snapshot_files()
    assert "data format version" in other.refused("PUT", "/snapshot/load", load)


def test_a_loaded_machine_stands_still_until_it_is_resumed(start: Start) -> None:
    taken, child = start(), start()
    taken.boot()
    taken.ask("PATCH", "/vm", {"state": "Paused"})
    taken.snapshot("Full", "memory")
    for name in ("overlay.raw", "config.img"):
        (child.folder / name).write_bytes((taken.folder / name).read_bytes())
    load = taken.snapshot_files()
    assert child.put("/snapshot/load", **load)[0] == NO_CONTENT
    assert child.ask("GET", "/")[1]["state"] == "Paused"
    assert child.ask("PATCH", "/vm", {"state": "Resumed"})[0] == NO_CONTENT
    assert child.ask("GET", "/")[1]["state"] == "Running"


def test_a_used_name_of_its_socket_is_refused(start: Start) -> None:
    vmm = start()
    vmm.ask("GET", "/")
    again = subprocess.run([PROGRAM, "--api-sock", "api.sock"], cwd=vmm.folder, capture_output=True)
    assert again.returncode == 1
