"""What holds of every real VMM that is spoken to over REST, shown with a guest of a hundred bytes.

A module of tests has a fixture `bench` and a class that derives from `TinyContract`.
"""

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import anyio
import pytest
from anyio import create_task_group

from ramet.core.ids import InstanceId, LayerId
from ramet.linux.memfd import SealableFile
from ramet.linux.process import read_maps
from ramet.linux.stored_file import StoredFile
from ramet.vmm.jail import UID_COUNT, UID_FIRST, JailMode
from ramet.vmm.port import Capture, DiskImage, ExitReason, VmmFailed
from ramet.vmm.rest_vm import RestVm
from tests.vmm import tiny_guest
from tests.vmm.bench import digest, open_files
from tests.vmm.tiny_bench import (
    DISK_BYTES,
    TIMEOUT_S,
    TinyBench,
    counted,
    goes_on,
    kill_at,
    make_volumes,
    until,
)

BURST = 25
Bench = TinyBench[RestVm]


class TinyContract:
    """The contract. Calls are as `kill_at` takes them."""

    boot_calls: ClassVar[Sequence[str]]
    capture_calls: ClassVar[Sequence[str]]
    load_calls: ClassVar[Sequence[str]]
    volume_count_max: ClassVar[int]
    stores_zeros: ClassVar[bool]
    """Whether a capture but the first has all memory; or so little that rounds may change much of it."""
    unfiltered_threads: ClassVar[frozenset[str]] = frozenset()
    """Those that have no seccomp filter, by name."""

    async def test_a_guest_runs_and_stands_still_and_runs(self, bench: Bench) -> None:
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

    async def test_a_child_goes_on_where_its_source_was_and_neither_sees_the_other(
        self, bench: Bench
    ) -> None:
        source, frozen, capture = await captured(bench)
        # What was never written is a hole.
        assert 0 < capture.memory.resident_bytes < bench.memory_bytes // 2
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
        mapped = [maps for maps in read_maps(child.runtime.pid) if "ramet-memory" in maps[3]]
        assert {permissions for _, _, permissions, _ in mapped} == {"rw-p"}
        capture.close()

    async def test_a_capture_may_lie_on_a_disk_which_nobody_but_us_can_change(self, bench: Bench) -> None:
        source = await bench.boot()
        await until(lambda: len(counted(source)) > 2)
        frozen = bench.tops[source.runtime.pid]
        files = [bench.folder / name for name in ("stored-memory", "stored-devices")]
        target = Capture(StoredFile.create(files[0], bench.memory_bytes), StoredFile.create(files[1]))
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

    async def test_of_a_child_only_the_changes_are_captured_however_often(self, bench: Bench) -> None:
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
            before = counted(child)[-1]
            taken = await bench.capture(child, base)
            assert taken.changes is not None or not self.stores_zeros
            after = counted(child)[-1]
            grandchild = await bench.child(taken, frozen)
            await grandchild.load(taken)
            await goes_on(grandchild)
            assert before < counted(grandchild)[0] <= after + 2
            again = await bench.capture(grandchild, base)
            assert again.changes is not None or not self.stores_zeros
            again.memory.close()
            taken.memory.close()

    async def test_many_children_load_one_capture_at_once(self, bench: Bench) -> None:
        source, frozen, capture = await captured(bench)
        await source.kill()
        await check_burst([await bench.child(capture, frozen) for _ in range(BURST)], capture)

    async def test_a_guest_and_its_child_have_as_many_volumes_as_there_are_places(self, bench: Bench) -> None:
        (places := bench.folder / "volumes").mkdir()
        volumes = make_volumes(places, self.volume_count_max)
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
        paths = {str(path) for volume in volumes for path, _ in volume.layers}
        assert paths <= open_files(child.runtime.pid)
        assert await child.top_layer() == bench.layers.path(below)
        capture.close()

    async def test_one_that_wakes_where_another_slept_goes_on(self, bench: Bench) -> None:
        """In the same folder, with the files of that one in it."""
        layer = bench.layers.create(DISK_BYTES)
        machine = bench.machine(layer)
        vm = bench.keep(await bench.driver.boot(machine), layer)
        for _ in range(2):
            await goes_on(vm)
            before = counted(vm)[-1]
            capture = await bench.capture(vm)
            after = counted(vm)[-1]
            await vm.kill()
            layer = bench.layers.create_on(layer, DISK_BYTES)
            machine = replace(machine, overlay=DiskImage(bench.layers.chain(layer)))
            # What it counts is looked for after what its predecessors have.
            (machine.folder / "console.log").unlink()
            vm = bench.keep(await bench.driver.start_waiting(machine, capture), layer)
            await vm.load(capture)
            capture.close()
            await goes_on(vm)
            assert before < counted(vm)[0] <= after + 2

    async def test_a_guest_that_resets_itself_is_told_apart_from_one_that_we_ended(
        self, bench: Bench
    ) -> None:
        resetting = await bench.boot(tiny_guest.build(last_round=3))
        with anyio.fail_after(TIMEOUT_S):
            assert await resetting.wait_exited() is ExitReason.GUEST_RESET
        assert not Path(f"/proc/{resetting.runtime.pid}").exists()
        killed, crashed = await bench.boot(), await bench.boot()
        await killed.kill()
        assert await killed.wait_exited() is ExitReason.KILLED
        os.kill(crashed.runtime.pid, signal.SIGKILL)
        assert await crashed.wait_exited() is ExitReason.UNKNOWN

    async def test_one_that_is_killed_at_any_call_of_its_boot_is_an_error_and_gone(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for call in self.boot_calls:
            with monkeypatch.context() as patch:
                is_asked = kill_at(patch, call)
                with pytest.raises(VmmFailed):
                    await bench.boot()
            assert is_asked(), call
            assert await bench.driver.find() == {}

    async def test_one_that_is_killed_at_any_call_of_its_capture_is_an_error_and_gone(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for call in self.capture_calls:
            source = await bench.boot()
            with monkeypatch.context() as patch:
                is_asked = kill_at(patch, call)
                with pytest.raises(VmmFailed):
                    await bench.capture(source)
            assert is_asked(), call
            assert await source.wait_exited() is ExitReason.UNKNOWN
            assert await bench.driver.find() == {}

    async def test_one_that_is_killed_at_its_load_leaves_the_capture_for_another(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _, frozen, capture = await captured(bench)
        for call in self.load_calls:
            child = await bench.child(capture, frozen)
            with monkeypatch.context() as patch:
                is_asked = kill_at(patch, call)
                with pytest.raises(VmmFailed, match="did not load"):
                    await child.load(capture)
            assert is_asked(), call
            assert not Path(f"/proc/{child.runtime.pid}").exists()
        sibling = await bench.child(capture, frozen)
        await sibling.load(capture)
        await goes_on(sibling)
        capture.close()

    async def test_a_running_one_is_found_and_adopted_by_another_driver(self, bench: Bench) -> None:
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

    async def test_in_its_jail_it_is_another_user_without_power_that_sees_its_own_files_only(
        self, bench: Bench
    ) -> None:
        vm = await bench.boot()
        pid, folder = vm.runtime.pid, vm.agent_socket.parent
        status = status_of(pid)
        uid = int(status["Uid"].split()[0])
        if bench.jail.mode is not JailMode.ON:
            assert uid == os.geteuid()
            return
        assert UID_FIRST < uid < UID_FIRST + UID_COUNT
        for thread in Path(f"/proc/{pid}/task").iterdir():
            status = status_of(int(thread.name))
            assert (status["NoNewPrivs"], int(status["CapEff"], 16)) == ("1", 0)
            assert status["Seccomp"] == ("0" if status["Name"] in self.unfiltered_threads else "2")
        seen = Path(f"/proc/{pid}/root")
        assert not (seen / "etc").exists()
        assert {path.name for path in (seen / "dev").iterdir()} == {"kvm", "urandom"}
        names = {path.name for path in (seen / str(folder).lstrip("/")).iterdir()}
        assert names >= {"api.sock", "console.log"}
        assert (folder.stat().st_uid, folder.stat().st_mode & 0o777) == (0, 0o711)
        top = bench.layers.path(bench.tops[pid])
        assert top.stat().st_uid == uid
        (await bench.capture(vm)).close()
        assert top.stat().st_uid == 0  # Frozen, and not its any more.
        assert (await vm.top_layer()).stat().st_uid == uid
        sibling = await bench.boot()
        assert os.stat(f"/proc/{sibling.runtime.pid}").st_uid not in (0, uid)


async def captured(bench: Bench) -> tuple[RestVm, LayerId, Capture]:
    """Boot a guest and capture it; returns the layer that is frozen, too."""
    source = await bench.boot()
    await until(lambda: len(counted(source)) > 2)
    frozen = bench.tops[source.runtime.pid]
    return source, frozen, await bench.capture(source)


async def check_burst(children: Sequence[RestVm], capture: Capture) -> None:
    """All load `capture` at once, go on from the same place, and are ended."""
    async with create_task_group() as group:
        for child in children:
            group.start_soon(child.load, capture)
    for child in children:
        await goes_on(child)
        await child.kill()
    assert len({counted(child)[0] for child in children}) == 1
    capture.close()


def status_of(pid: int) -> Mapping[str, str]:
    """Return what the kernel tells of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)
