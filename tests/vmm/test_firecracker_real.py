"""The driver and the pager on a real Firecracker, with a guest of a hundred bytes.

Skipped, saying so, where there is no Firecracker (on the path, or RAMET_FIRECRACKER) or no /dev/kvm.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from anyio import create_task_group

from ramet.core.errors import Broken
from ramet.core.ids import InstanceId, LayerId, mint_id
from ramet.linux.memfd import SealableFile
from ramet.linux.process import list_command_lines
from ramet.linux.stored_file import StoredFile
from ramet.pager import PagerService, SessionPhase
from ramet.vmm.firecracker.build import VOLUME_COUNT_MAX
from ramet.vmm.firecracker.driver import FirecrackerDriver
from ramet.vmm.firecracker.features import NETWORK_OVERRIDES
from ramet.vmm.firecracker.rewrite import rewrite_folder
from ramet.vmm.firecracker.vm import FirecrackerVm, Pager
from ramet.vmm.jail import UID_COUNT, UID_FIRST, JailConfig, JailMode
from ramet.vmm.port import (
    MEMORY_FILE_NAME,
    Capture,
    DiskImage,
    ExitReason,
    Machine,
    Nic,
    NicLimits,
    VmmFailed,
)
from ramet.vmm.rest import Api
from tests.net.namespaces import own_namespace, run_ip
from tests.vmm import tiny_guest
from tests.vmm.bench import digest, open_files
from tests.vmm.firecracker_bench import always_paged
from tests.vmm.raw_layers import RawLayerStore
from tests.vmm.test_firecracker_pager import client_at, pager_at
from tests.vmm.tiny_bench import make_volumes

MEMORY_BYTES = 16 << 20
DISK_BYTES = 1 << 20
BURST = 25
POLL_S = 0.01
TIMEOUT_S = 60.0


def why_not() -> str | None:
    """Return why there is nothing to try the driver on."""
    try:
        FirecrackerDriver.open(Path("/"), jail=JailConfig(JailMode.OFF))
    except Broken as error:
        return str(error)
    return None if os.access("/dev/kvm", os.R_OK | os.W_OK) else "/dev/kvm cannot be used"


WHY_NOT = why_not()
IS_ROOT = os.geteuid() == 0
JAILS = [JailMode.OFF, JailMode.ON] if IS_ROOT else [JailMode.OFF]
pytestmark = [pytest.mark.anyio, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]


class RealBench:
    """A driver, and guests that count."""

    def __init__(self, folder: Path, jail: JailMode) -> None:
        self.folder, self.jail = folder, JailConfig(jail)
        for name in ("instances", "layers"):
            (folder / name).mkdir()
        self.layers = RawLayerStore(folder / "layers")
        self.driver = self.open_driver()
        self.vms: list[FirecrackerVm] = []
        self.tops: dict[int, LayerId] = {}

    def open_driver(self, pager: Pager | None = None) -> FirecrackerDriver:
        return FirecrackerDriver.open(
            self.folder / "instances", pager=pager, jail=self.jail, choose=always_paged
        )

    def machine(self, layer: LayerId, kernel: bytes | None = None) -> Machine:
        instance = InstanceId(mint_id())
        folder = self.folder / "instances" / instance
        folder.mkdir()
        files = {
            "kernel": kernel or tiny_guest.build(),
            "initramfs": bytes(4096),
            "config.img": bytes(65_536),
        }
        for name, content in files.items():
            (folder / name).write_bytes(content)
        root = self.folder / "root.img"
        if not root.exists():
            root.write_bytes(bytes(DISK_BYTES))
        overlay = DiskImage(self.layers.chain(layer))
        return Machine(
            instance,
            folder,
            1,
            MEMORY_BYTES,
            folder / "kernel",
            folder / "initramfs",
            root,
            overlay,
            folder / "config.img",
            None,
        )

    async def boot(self, kernel: bytes | None = None) -> FirecrackerVm:
        layer = self.layers.create(DISK_BYTES)
        return self.keep(await self.driver.boot(self.machine(layer, kernel)), layer)

    async def capture(
        self, vm: FirecrackerVm, base: SealableFile | None = None, target: Capture | None = None
    ) -> Capture:
        if target is None:
            memory = SealableFile(MEMORY_FILE_NAME, MEMORY_BYTES)
            target = Capture(memory, SealableFile("ramet-devices"), base=base)
        new_top = self.layers.create_on(self.tops[vm.runtime.pid], DISK_BYTES)
        await vm.prepare_disk(self.layers.path(new_top))
        await vm.copy_ahead(target)
        async with vm.paused():
            await vm.switch_disk(self.layers.path(new_top))
            await vm.save_devices(target)
            await vm.copy_rest(target)
        self.tops[vm.runtime.pid] = new_top
        target.seal()
        return target

    async def child(self, capture: Capture, frozen: LayerId, pager: Pager | None = None) -> FirecrackerVm:
        layer = self.layers.create_on(frozen, DISK_BYTES)
        driver = self.driver if pager is None else self.open_driver(pager)
        return self.keep(await driver.start_waiting(self.machine(layer), capture), layer)

    def keep(self, vm: FirecrackerVm, layer: LayerId) -> FirecrackerVm:
        self.vms.append(vm)
        self.tops[vm.runtime.pid] = layer
        return vm

    async def aclose(self) -> None:
        for vm in self.vms:
            await vm.kill()


@pytest.fixture(params=JAILS)
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[RealBench]:
    folder = Path(tempfile.mkdtemp(prefix="ramet-fc-"))
    bench = RealBench(folder, request.param)
    yield bench
    await bench.aclose()
    shutil.rmtree(folder)


@pytest.fixture
def namespace() -> Iterator[None]:
    with own_namespace():
        yield


@pytest.fixture
async def pager(bench: RealBench) -> AsyncIterator[PagerService]:
    async with pager_at(bench.folder / "pagers") as service:
        yield service
        await bench.aclose()


def counted(vm: FirecrackerVm) -> list[int]:
    """Return the numbers that a guest has printed; all of its memory was right."""
    return tiny_guest.rounds((vm.agent_socket.parent / "console.log").read_text())


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - a console tells nobody
            await anyio.sleep(POLL_S)


async def goes_on(vm: FirecrackerVm) -> None:
    """Return when a guest has counted further than it had."""
    before = len(counted(vm))
    await until(lambda: len(counted(vm)) > before + 1)


async def test_a_guest_runs_and_stands_still_and_runs(bench: RealBench) -> None:
    vm = await bench.boot()
    await until(lambda: len(counted(vm)) > 2)
    async with vm.paused():
        assert await vm.is_paused()
        before = counted(vm)
        await bench.driver.find()
        assert counted(vm) == before
    assert not await vm.is_paused()
    await goes_on(vm)
    assert counted(vm) == list(range(1, len(counted(vm)) + 1))


async def test_a_child_goes_on_where_its_source_was_and_neither_sees_the_other(bench: RealBench) -> None:
    source = await bench.boot()
    await until(lambda: len(counted(source)) > 2)
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    assert 0 < capture.memory.resident_bytes < MEMORY_BYTES // 2  # What was never written is a hole.
    before = digest(capture.memory)
    at_capture = len(counted(source))
    await goes_on(source)
    child = await bench.child(capture, frozen)
    await child.load(capture)
    await goes_on(child)
    assert 1 < counted(child)[0] <= at_capture + 1
    await goes_on(source)
    assert counted(source) == list(range(1, len(counted(source)) + 1))
    assert digest(capture.memory) == before
    assert await child.top_layer() == bench.layers.path(bench.tops[child.runtime.pid])
    assert await source.top_layer() == bench.layers.path(bench.tops[source.runtime.pid])
    capture.close()


async def test_a_capture_may_lie_on_a_disk_which_nobody_but_us_can_change(bench: RealBench) -> None:
    source = await bench.boot()
    await until(lambda: len(counted(source)) > 2)
    frozen = bench.tops[source.runtime.pid]
    files = [bench.folder / name for name in ("stored-memory", "stored-devices")]
    target = Capture(StoredFile.create(files[0], MEMORY_BYTES), StoredFile.create(files[1]))
    await bench.capture(source, target=target)
    await source.kill()
    target.close()
    stored = Capture(StoredFile.open(files[0]), StoredFile.open(files[1]), target.format)
    child = await bench.child(stored, frozen)
    await child.load(stored)
    await goes_on(child)
    for file in files:
        found = file.stat()
        assert (found.st_uid, found.st_mode & 0o337) == (os.geteuid(), 0)
    stored.close()


async def test_of_a_child_only_the_changes_are_captured_however_often(bench: RealBench) -> None:
    source = await bench.boot()
    await until(lambda: len(counted(source)) > 2)
    (await bench.capture(source)).close()  # The next has all memory, of which a round changes little.
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    base = capture.memory
    assert isinstance(base, SealableFile)
    child = await bench.child(capture, frozen)
    await child.load(capture)
    for _ in range(2):
        await goes_on(child)
        frozen = bench.tops[child.runtime.pid]
        taken = await bench.capture(child, base)
        assert taken.changes is not None
        assert taken.mapped is base
        last = counted(child)[-1]
        grandchild = await bench.child(taken, frozen)
        await grandchild.load(taken)
        await goes_on(grandchild)
        assert abs(counted(grandchild)[0] - last) <= 2
        again = await bench.capture(grandchild, base)
        assert again.mapped is base
        again.memory.close()
        taken.memory.close()


async def test_a_child_is_served_by_the_pager(bench: RealBench, pager: PagerService) -> None:
    source = await bench.boot()
    await until(lambda: len(counted(source)) > 2)
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    child = await bench.child(capture, frozen, pager)
    await child.load(capture)
    await goes_on(child)
    assert counted(child)[0] > 1
    (session,) = (await client_at(bench.folder / "pagers").statistics()).sessions
    assert session.phase is SessionPhase.SERVING
    assert session.vmm_pid == child.runtime.pid
    assert session.fault_count > 0
    grandchild_frozen = bench.tops[child.runtime.pid]
    second = await bench.capture(child)
    grandchild = await bench.child(second, grandchild_frozen, pager)
    await grandchild.load(second)
    await goes_on(grandchild)
    assert counted(grandchild)[0] > counted(child)[0]
    capture.close()
    second.close()


@pytest.mark.parametrize("is_paged", [False, True], ids=["file", "pager"])
async def test_many_children_load_one_capture_at_once(
    bench: RealBench, pager: PagerService, is_paged: bool
) -> None:
    source = await bench.boot()
    await until(lambda: len(counted(source)) > 2)
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    await source.kill()
    children = [await bench.child(capture, frozen, pager if is_paged else None) for _ in range(BURST)]
    async with create_task_group() as group:
        for child in children:
            group.start_soon(child.load, capture)
    for child in children:
        await goes_on(child)
        await child.kill()
    assert len({counted(child)[0] for child in children}) == 1
    capture.close()


async def test_a_guest_that_resets_itself_is_told_apart_from_one_that_we_ended(bench: RealBench) -> None:
    resetting = await bench.boot(tiny_guest.build(last_round=3))
    with anyio.fail_after(TIMEOUT_S):
        assert await resetting.wait_exited() is ExitReason.GUEST_RESET
    assert counted(resetting) == [1, 2, 3]
    killed, crashed = await bench.boot(), await bench.boot()
    await killed.kill()
    assert await killed.wait_exited() is ExitReason.KILLED
    os.kill(crashed.runtime.pid, signal.SIGKILL)
    assert await crashed.wait_exited() is ExitReason.UNKNOWN


async def test_what_cannot_be_loaded_ends_the_process_with_a_reason_and_can_be_tried_again(
    bench: RealBench,
) -> None:
    source = await bench.boot()
    await until(lambda: len(counted(source)) > 2)
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    broken = Capture(capture.memory, SealableFile("ramet-devices"), capture.format)
    content = bytearray(Path(capture.devices.path).read_bytes())
    content[100] ^= 1
    os.pwrite(broken.devices.fd, content, 0)
    broken.devices.seal()
    child = await bench.child(broken, frozen)
    with pytest.raises(VmmFailed, match="CRC"):
        await child.load(broken)
    assert not Path(f"/proc/{child.runtime.pid}").exists()
    sibling = await bench.child(capture, frozen)
    await sibling.load(capture)
    await goes_on(sibling)
    capture.close()


def kill_at(monkeypatch: pytest.MonkeyPatch, wanted: str) -> None:
    """Have the VMM that is asked `wanted` next be killed when it has the request, and before it answers."""
    exchange = Api._exchange
    is_armed = True

    async def killing(
        api: Api, method: str, path: str, body: Mapping[str, object] | None, passed: Sequence[int]
    ) -> tuple[int, bytes]:
        nonlocal is_armed
        if not is_armed or f"{method} {path}" != wanted:
            return await exchange(api, method, path, body, passed)
        is_armed = False
        pid = next(pid for pid, _ in list_command_lines() if is_in(pid, api._folder))
        os.kill(pid, signal.SIGSTOP)
        asked = asyncio.ensure_future(exchange(api, method, path, body, passed))
        await anyio.wait_all_tasks_blocked()
        os.kill(pid, signal.SIGKILL)
        return await asked

    monkeypatch.setattr(Api, "_exchange", killing)


def is_in(pid: int, folder: Path) -> bool:
    """Tell whether a process has `folder` as its working directory."""
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/cwd") == str(folder)
    return False


@pytest.mark.parametrize(
    "call",
    [
        "GET /version",
        "PUT /machine-config",
        "PUT /boot-source",
        "PUT /drives/root",
        "PUT /drives/overlay",
        "PUT /drives/config",
        "PUT /vsock",
        "PUT /entropy",
        "PUT /balloon",
        "PUT /actions",
    ],
)
async def test_one_that_is_killed_at_any_call_of_its_boot_is_an_error_and_gone(
    bench: RealBench, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    kill_at(monkeypatch, call)
    with pytest.raises(VmmFailed):
        await bench.boot()
    assert await bench.driver.find() == {}


@pytest.mark.parametrize("call", ["PATCH /vm", "PATCH /drives/overlay", "PUT /snapshot/create"])
async def test_one_that_is_killed_at_any_call_of_its_capture_is_an_error_and_gone(
    bench: RealBench, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    source = await bench.boot()
    kill_at(monkeypatch, call)
    with pytest.raises(VmmFailed):
        await bench.capture(source)
    assert await source.wait_exited() is ExitReason.UNKNOWN
    assert await bench.driver.find() == {}


async def test_one_that_is_killed_at_its_load_leaves_the_capture_for_another(
    bench: RealBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = await bench.boot()
    await until(lambda: len(counted(source)) > 2)
    frozen = bench.tops[source.runtime.pid]
    capture = await bench.capture(source)
    child = await bench.child(capture, frozen)
    kill_at(monkeypatch, "PUT /snapshot/load")
    with pytest.raises(VmmFailed, match="did not load"):
        await child.load(capture)
    assert not Path(f"/proc/{child.runtime.pid}").exists()
    sibling = await bench.child(capture, frozen)
    await sibling.load(capture)
    await goes_on(sibling)
    capture.close()


def limits_in(config: Mapping[str, object]) -> dict[str, int | None]:
    """Return the bytes per second at most of the one network card, by direction."""
    (nic,) = cast("list[dict[str, Any]]", config["network-interfaces"])
    found: dict[str, int | None] = {}
    for name in ("rx", "tx"):
        bucket = (nic.get(f"{name}_rate_limiter") or {}).get("bandwidth")
        found[name] = bucket and bucket["size"] * 1000 // bucket["refill_time"]
    return found


@pytest.mark.skipif(not IS_ROOT, reason="making a TAP takes root")
async def test_a_network_card_is_held_to_its_own_limits(namespace: None, bench: RealBench) -> None:
    for name in ("tap0", "tap1"):
        run_ip(f"tuntap add {name} mode tap")
    layer = bench.layers.create(DISK_BYTES)
    nic = Nic("02:00:00:00:00:07", -1, "tap0", NicLimits(5_000_000, 1_000_000))
    source = bench.keep(await bench.driver.boot(replace(bench.machine(layer), nic=nic)), layer)
    assert limits_in(await source._api.get("/vm/config")) == {"rx": 5_000_000, "tx": 1_000_000}
    capture = await bench.capture(source)
    if not source._demand_release().has(NETWORK_OVERRIDES):
        pytest.skip("it has no children with a network card")
    for limits, wanted in (
        (NicLimits(None, 2_000_000), {"rx": None, "tx": 2_000_000}),
        (NicLimits(), {"rx": None, "tx": None}),
        (None, {"rx": 5_000_000, "tx": 1_000_000}),
    ):
        below = bench.layers.create_on(layer, DISK_BYTES)
        own = replace(nic, tap_name="tap1", limits=limits)
        child = await bench.driver.start_waiting(replace(bench.machine(below), nic=own), capture)
        bench.keep(child, below)
        await child.load(capture)
        assert limits_in(await child._api.get("/vm/config")) == wanted
        await goes_on(child)
        await child.kill()


async def test_in_its_jail_it_is_another_user_without_power_that_sees_its_own_files_only(
    bench: RealBench,
) -> None:
    vm = await bench.boot()
    pid, folder = vm.runtime.pid, vm.agent_socket.parent
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    uid = int(status["Uid"].split()[0])
    assert bench.driver.is_jailed == (bench.jail.mode is JailMode.ON)
    if not bench.driver.is_jailed:
        assert uid == os.geteuid()
        return
    assert UID_FIRST < uid < UID_FIRST + UID_COUNT
    assert (status["NoNewPrivs"], status["Seccomp"], int(status["CapEff"], 16)) == ("1", "2", 0)
    seen = Path(f"/proc/{pid}/root")
    assert not (seen / "etc").exists()
    assert {path.name for path in (seen / "dev").iterdir()} == {"kvm", "urandom"}
    assert {path.name for path in (seen / str(folder).lstrip("/")).iterdir()} >= {"api.sock", "console.log"}
    assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (0, 0o711)
    top = bench.layers.path(bench.tops[pid])
    assert top.stat().st_uid == uid
    (await bench.capture(vm)).close()
    assert top.stat().st_uid == 0  # Frozen, and not its any more.
    sibling = await bench.boot()
    assert os.stat(f"/proc/{sibling.runtime.pid}").st_uid not in (0, uid)


async def test_a_snapshot_of_another_folder_is_loaded_when_its_paths_are_rewritten(bench: RealBench) -> None:
    theirs, ours = bench.folder / "theirs", bench.folder / "ours00"
    for folder in (theirs, ours):
        folder.mkdir()
        (folder / "root.img").write_bytes(bytes(DISK_BYTES))
    layer = bench.layers.create(DISK_BYTES)
    machine = replace(bench.machine(layer), root=theirs / "root.img")
    source = bench.keep(await bench.driver.boot(machine), layer)
    await until(lambda: len(counted(source)) > 2)
    capture = await bench.capture(source)
    await source.kill()
    shutil.rmtree(theirs)
    content = Path(capture.devices.path).read_bytes()
    rewritten, count = rewrite_folder(content, str(theirs), str(ours))
    assert count == 1
    imported = Capture(capture.memory, SealableFile("ramet-devices"), capture.format)
    os.pwrite(imported.devices.fd, rewritten, 0)
    imported.devices.seal()
    below = bench.layers.create_on(layer, DISK_BYTES)
    child_machine = replace(bench.machine(below), root=ours / "root.img")
    child = bench.keep(await bench.driver.start_waiting(child_machine, imported), below)
    await child.load(imported)
    await goes_on(child)
    imported.close()


async def test_its_metrics_and_its_log_can_be_cut_short_while_it_writes_them(bench: RealBench) -> None:
    vm = await bench.boot()
    for name in ("metrics.json", "vmm.log"):
        file = vm.agent_socket.parent / name
        for _ in range(2):
            os.truncate(file, 0)
            await vm._api.put("/actions", {"action_type": "FlushMetrics"})
            assert 0 < file.stat().st_size < 65_536
            assert not file.read_bytes().startswith(b"\0")


async def test_a_running_one_is_found_and_adopted_by_another_driver(bench: RealBench) -> None:
    vm = await bench.boot()
    await until(lambda: len(counted(vm)) > 2)
    instance = InstanceId(vm.agent_socket.parent.name)
    await vm.detach()
    bench.vms.remove(vm)
    other = bench.open_driver()
    found = await other.find()
    assert found.keys() == {instance}
    adopted = bench.keep(
        await other.adopt(instance, vm.agent_socket.parent, found[instance]), bench.tops[vm.runtime.pid]
    )
    frozen = bench.tops[adopted.runtime.pid]
    capture = await bench.capture(adopted)
    child = await bench.child(capture, frozen)
    await child.load(capture)
    await goes_on(child)
    capture.close()


async def test_a_guest_and_its_child_have_as_many_volumes_as_there_are_places(bench: RealBench) -> None:
    (places := bench.folder / "volumes").mkdir()
    volumes = make_volumes(places, VOLUME_COUNT_MAX)
    layer = bench.layers.create(DISK_BYTES)
    source = bench.keep(await bench.driver.boot(replace(bench.machine(layer), volumes=volumes)), layer)
    await until(lambda: len(counted(source)) > 2)
    capture = await bench.capture(source)
    await source.kill()
    below = bench.layers.create_on(layer, DISK_BYTES)
    machine = replace(bench.machine(below), volumes=volumes)
    child = bench.keep(await bench.driver.start_waiting(machine, capture), below)
    await child.load(capture)
    await goes_on(child)
    assert {str(path) for volume in volumes for path, _ in volume.layers} <= open_files(child.runtime.pid)
    assert await child.top_layer() == bench.layers.path(below)
    capture.close()
