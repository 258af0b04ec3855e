"""What a Cloud Hypervisor in its jail is and has; what one that was taken over cannot make us read."""

import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ramet.core.errors import Broken
from ramet.core.ids import InstanceId
from ramet.linux.memfd import SealableFile
from ramet.vmm.cloud_hypervisor.driver import CloudHypervisorDriver
from ramet.vmm.cloud_hypervisor.snapshot import CONFIG, MEMORY, STATE, Snapshot, copy_memory
from ramet.vmm.jail import UID_COUNT, UID_FIRST, JailConfig, JailMode
from ramet.vmm.port import DiskImage, VmmFailed
from tests.vmm.cloud_hypervisor_bench import CloudHypervisorBench

pytestmark = pytest.mark.anyio

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="a jail takes root")
BROUGHT_IN = "/etc/passwd"
SPARSE_BYTES = 1 << 27


@pytest.fixture(scope="module")
async def bench() -> AsyncIterator[CloudHypervisorBench]:
    folder = Path(tempfile.mkdtemp(prefix="ramet-ch-"))
    bench = CloudHypervisorBench(folder, jail=JailMode.ON)
    yield bench
    await bench.aclose()
    shutil.rmtree(folder)


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def owner(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_uid, found.st_mode & 0o777


@AS_ROOT
async def test_it_is_a_user_without_power_that_has_two_devices_and_makes_no_files(
    bench: CloudHypervisorBench,
) -> None:
    vm = await bench.boot()
    pid, folder = vm.runtime.pid, vm.agent_socket.parent
    status = status_of(pid)
    uid = int(status["Uid"].split()[0])
    assert UID_FIRST < uid < UID_FIRST + UID_COUNT
    assert (status["NoNewPrivs"], int(status["CapEff"], 16), int(status["CapBnd"], 16)) == ("1", 0, 0)
    seen = Path(f"/proc/{pid}/root")
    assert not (seen / "etc").exists()
    assert {path.name for path in (seen / "dev").iterdir()} == {"kvm", "urandom"}
    assert owner(folder) == (os.geteuid(), 0o711)
    assert owner(folder / "console.log") == (uid, 0o600)
    sibling = await bench.boot()
    assert status_of(sibling.runtime.pid)["Uid"] != status["Uid"]
    for each in (vm, sibling):
        await bench.end(each)


@AS_ROOT
async def test_what_it_writes_to_is_its_own_and_what_was_captured_is_not(bench: CloudHypervisorBench) -> None:
    source = await bench.boot()
    (uid,) = set(status_of(source.runtime.pid)["Uid"].split())
    top = bench.layers.path(bench.tops[source.runtime.pid])
    assert owner(top) == (int(uid), 0o600)
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    assert owner(top) == (os.geteuid(), 0o600)
    assert owner(await source.top_layer()) == (int(uid), 0o600)
    assert owner(source.agent_socket.parent) == (os.geteuid(), 0o711)
    child = await bench.child(capture, frozen)
    (other,) = set(status_of(child.runtime.pid)["Uid"].split())
    assert other != uid
    assert owner(await child.top_layer()) == (int(other), 0o600)
    assert owner(child.agent_socket.parent) == (os.geteuid(), 0o711)
    capture.close()
    for vm in (child, source):
        await bench.end(vm)


@AS_ROOT
async def test_one_that_wakes_where_another_slept_has_that_ones_files(bench: CloudHypervisorBench) -> None:
    layer = bench.layers.create(bench.overlay_bytes)
    machine = bench.machine(layer)
    sleeper = bench.keep(await bench.driver.boot(machine), layer)
    for turn in ("1", "2"):
        await bench.run(sleeper, bench.remember("turn", turn))
        frozen = bench.tops[sleeper.runtime.pid]
        capture = await bench.capture(sleeper)
        await bench.end(sleeper)
        assert owner(machine.folder) == (os.geteuid(), 0o711)
        below = bench.layers.create_on(frozen, bench.overlay_bytes)
        machine = replace(machine, overlay=DiskImage(bench.layers.chain(below)))
        sleeper = bench.keep(await bench.driver.start_waiting(machine, capture), below)
        await bench.wake(sleeper, capture, "sleeper")
        capture.close()
        assert await bench.run(sleeper, bench.recall("turn")) == turn
    await bench.end(sleeper)


@AS_ROOT
async def test_one_that_is_found_is_in_its_jail_still(bench: CloudHypervisorBench) -> None:
    vm = await bench.boot()
    folder, top = vm.agent_socket.parent, bench.tops[vm.runtime.pid]
    await vm.detach()
    bench.vms.remove(vm)
    other = bench.open_driver()
    instance = InstanceId(folder.name)
    adopted = bench.keep(await other.adopt(instance, folder, (await other.find())[instance]), top)
    child = await bench.fork(adopted)
    assert owner(bench.layers.path(top))[0] == os.geteuid()
    for each in (child, adopted):
        await bench.end(each)


@AS_ROOT
def test_where_there_can_be_no_jail_it_is_refused_or_runs_outside(tmp_path: Path) -> None:
    program = tmp_path / "cloud-hypervisor"
    program.write_text("#!/bin/sh\necho cloud-hypervisor v53.0\n")
    program.chmod(0o755)
    environment = {"RAMET_CLOUD_HYPERVISOR": str(program), "PATH": os.environ["PATH"]}
    nothing = JailConfig(JailMode.ON, program_folders=(tmp_path,))  # No shell in there.
    with pytest.raises(Broken, match="cannot be put into a jail") as refused:
        CloudHypervisorDriver.open(tmp_path, environment=environment, jail=nothing)
    assert "hypervisor.cloud_hypervisor_jail" in refused.value.remedy
    outside = replace(nothing, mode=JailMode.AUTO)
    assert not CloudHypervisorDriver.open(tmp_path, environment=environment, jail=outside).is_jailed


# A snapshot of one that was taken over


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Return a folder with a snapshot."""
    for name in (CONFIG, STATE):
        (tmp_path / name).write_text("{}")
    (tmp_path / MEMORY).write_bytes(bytes(4096))
    return tmp_path


def put_link(path: Path) -> None:
    path.symlink_to(BROUGHT_IN)


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_folder(path: Path) -> None:
    path.mkdir()


def put_much(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(SPARSE_BYTES)


def put_depth(path: Path) -> None:
    path.write_text("[" * 1_000_000)


@pytest.mark.parametrize("put", [put_link, put_pipe, put_folder, put_much, put_depth])
@pytest.mark.parametrize("name", [CONFIG, STATE])
def test_what_is_no_small_file_is_neither_followed_nor_waited_for(
    stored: Path, name: str, put: Callable[[Path], None]
) -> None:
    assert Snapshot.read_folder(stored) == Snapshot({}, {})
    (stored / name).unlink()
    put(stored / name)
    with pytest.raises((OSError, ValueError)):
        Snapshot.read_folder(stored)


@pytest.mark.parametrize("put", [put_link, put_pipe, put_folder, put_much])
def test_memory_that_is_no_file_of_its_size_is_not_copied(stored: Path, put: Callable[[Path], None]) -> None:
    memory = SealableFile("ramet-memory", 4096)
    copy_memory(stored, 4096, memory)
    (stored / MEMORY).unlink()
    put(stored / MEMORY)
    with pytest.raises((OSError, ValueError)):
        copy_memory(stored, 4096, memory)
    memory.close()


def test_devices_of_too_many_levels_are_an_error() -> None:
    devices = SealableFile("ramet-devices")
    os.pwrite(devices.fd, b"[" * 1_000_000, 0)
    with pytest.raises(VmmFailed, match="make no sense"):
        Snapshot.read(devices)
    os.ftruncate(devices.fd, 0)
    os.pwrite(devices.fd, json.dumps({"config": {}, "state": {}}).encode(), 0)
    assert Snapshot.read(devices) == Snapshot({}, {})
    devices.close()
