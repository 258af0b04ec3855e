"""What every driver that can fork must do. The same tests run for the fake and for real VMMs.

A subclass brings the `bench`; the `source` is one booted guest that all tests of a module share and leave
running. What a test does to a guest for good it does to a child.
"""

import os
import signal
from dataclasses import replace
from typing import Any

import anyio
import pytest
from anyio import create_task_group

from ramet.core.ids import InstanceId
from ramet.vmm.port import ExitReason, SnapshotIncompatible, VmmFailed, VmmSilent
from tests.vmm.bench import Bench, LiveVm, digest, open_files

CHILD_COUNT = 5
RATE_BYTES_PER_S = 50_000_000


class ForkContract:
    """Inherit, and provide the fixtures `bench` and `source`."""

    async def test_a_booted_guest_answers(self, bench: Bench, source: LiveVm) -> None:
        async with bench.channel(source) as channel:
            assert (await channel.health()).workload.state == "running"

    async def test_a_child_has_its_parents_memory_and_disk_and_its_own_name(
        self, bench: Bench, source: LiveVm
    ) -> None:
        await bench.run(source, bench.remember("warm", "memory"))
        await bench.run(source, bench.store("warm", "disk"))
        child = await bench.fork(source, "somebody")
        assert await bench.run(child, bench.recall("warm")) == "memory"
        assert await bench.run(child, bench.fetch("warm")) == "disk"
        await bench.end(child)

    async def test_source_and_child_do_not_see_each_others_writes(self, bench: Bench, source: LiveVm) -> None:
        await bench.run(source, bench.remember("who", "before"))
        await bench.run(source, bench.store("who", "before"))
        child = await bench.fork(source)
        for vm, name in ((source, "source"), (child, "child")):
            await bench.run(vm, bench.remember("who", name))
            await bench.run(vm, bench.store("who", name))
        for vm, name in ((source, "source"), (child, "child")):
            assert await bench.run(vm, bench.recall("who")) == name
            assert await bench.run(vm, bench.fetch("who")) == name
        await bench.end(child)

    async def test_a_fork_of_a_fork_has_what_each_generation_wrote(
        self, bench: Bench, source: LiveVm
    ) -> None:
        await bench.run(source, bench.remember("first", "1"))
        child = await bench.fork(source, "child")
        await bench.run(child, bench.remember("second", "2"))
        await bench.run(child, bench.store("second", "2"))
        grandchild = await bench.fork(child, "grandchild")
        await bench.end(child)
        assert await bench.run(grandchild, bench.recall("first")) == "1"
        assert await bench.run(grandchild, bench.recall("second")) == "2"
        assert await bench.run(grandchild, bench.fetch("second")) == "2"
        await bench.end(grandchild)

    async def test_disks_let_no_more_through_than_was_said_from_the_start_and_after_a_load(
        self, bench: Bench, source: LiveVm
    ) -> None:
        assert bench.driver.limits_disks
        assert await bench.disk_rates(source) == {None}
        limited = await bench.boot(disk_io_bytes_per_s=RATE_BYTES_PER_S)
        assert await bench.disk_rates(limited) == {RATE_BYTES_PER_S}
        frozen = bench.tops[limited.runtime.pid]
        capture = await bench.capture(limited)
        assert await bench.disk_rates(limited) == {RATE_BYTES_PER_S}  # It writes to another layer now.
        for rate in (RATE_BYTES_PER_S, 2 * RATE_BYTES_PER_S):
            child = await bench.start_waiting(capture, frozen, disk_io_bytes_per_s=rate)
            await bench.wake(child, capture, "limited")
            assert await bench.disk_rates(child) == {rate}
            await bench.end(child)
        capture.close()
        await bench.end(limited)

    async def test_many_children_load_one_capture_at_once(self, bench: Bench, source: LiveVm) -> None:
        await bench.run(source, bench.remember("mark", "same"))
        frozen = bench.tops[source.runtime.pid]
        capture = await bench.capture(source)
        children: list[LiveVm] = []

        async def start(index: int) -> None:
            children.append(await bench.child(capture, frozen, f"child{index}"))

        async with create_task_group() as group:
            for index in range(CHILD_COUNT):
                group.start_soon(start, index)
        capture.close()
        for child in children:
            assert await bench.run(child, bench.recall("mark")) == "same"
            await bench.end(child)

    async def test_children_may_be_started_before_the_capture_is_filled(
        self, bench: Bench, source: LiveVm
    ) -> None:
        await bench.run(source, bench.remember("late", "yes"))
        frozen = bench.tops[source.runtime.pid]
        capture = bench.new_capture()
        first = await bench.start_waiting(capture, frozen)
        second = await bench.start_waiting(capture, frozen)
        await bench.capture(source, capture)
        for child in (first, second):
            await bench.wake(child, capture, "late")
        capture.close()
        for child in (first, second):
            assert await bench.run(child, bench.recall("late")) == "yes"
            await bench.end(child)

    async def test_a_capture_does_not_change_whatever_its_children_do(
        self, bench: Bench, source: LiveVm
    ) -> None:
        await bench.run(source, bench.store("who", "source"))
        frozen = bench.tops[source.runtime.pid]
        capture = await bench.capture(source)
        before = digest(capture.memory)
        wild = await bench.child(capture, frozen, "wild")
        await bench.run(wild, bench.remember("who", "wild"))
        await bench.run(wild, bench.store("who", "wild"))
        await bench.end(wild)
        assert digest(capture.memory) == before
        sibling = await bench.child(capture, frozen, "sibling")
        assert await bench.run(sibling, bench.fetch("who")) == "source"
        capture.close()
        await bench.end(sibling)

    async def test_of_a_child_that_stands_on_a_known_memory_only_the_changes_are_captured(
        self, bench: Bench, source: LiveVm
    ) -> None:
        await bench.run(source, bench.remember("first", "1"))
        frozen = bench.tops[source.runtime.pid]
        capture = await bench.capture(source)
        child = await bench.child(capture, frozen)
        await bench.run(child, bench.remember("second", "2"))
        frozen = bench.tops[child.runtime.pid]
        base = capture.memory
        before = digest(base)
        second = await bench.capture(child, bench.new_capture(base))
        await bench.run(child, bench.remember("third", "3"))
        third = await bench.capture(child, bench.new_capture(base))
        await bench.end(child)
        for taken, third_is in ((second, ""), (third, "3")):
            assert taken.changes is not None
            assert taken.mapped is base
            assert 0 < sum(length for _, length in taken.changes) <= base.resident_bytes
            grandchild = await bench.child(taken, frozen, "grandchild")
            assert await bench.run(grandchild, bench.recall("first")) == "1"
            assert await bench.run(grandchild, bench.recall("second")) == "2"
            if third_is:
                assert await bench.run(grandchild, bench.recall("third")) == third_is
            # It stands on the same memory, however often it was captured.
            again = await bench.capture(grandchild, bench.new_capture(base))
            assert again.mapped is base
            await bench.end(grandchild)
            again.memory.close()
        assert digest(base) == before
        second.close()

    async def test_the_guest_stands_still_inside_paused_and_runs_afterwards(
        self, bench: Bench, source: LiveVm
    ) -> None:
        async with source.paused():
            assert await source.is_paused()
        assert not await source.is_paused()

    async def test_the_guest_runs_on_if_the_inside_of_paused_raises(
        self, bench: Bench, source: LiveVm
    ) -> None:
        with pytest.raises(RuntimeError, match="inside"):
            async with source.paused():
                raise RuntimeError("inside")
        assert not await source.is_paused()

    async def test_the_guest_runs_on_if_the_inside_of_paused_is_cancelled(
        self, bench: Bench, source: LiveVm
    ) -> None:
        with anyio.CancelScope() as scope:
            async with source.paused():
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert not await source.is_paused()

    async def test_to_resume_a_running_guest_does_not_harm_it(self, bench: Bench, source: LiveVm) -> None:
        await source.resume()
        assert not await source.is_paused()
        assert await bench.run(source, ("echo", "on")) == "on"

    async def test_whoever_resumes_waits_for_the_end_of_a_pause(self, bench: Bench, source: LiveVm) -> None:
        async with create_task_group() as group, source.paused():
            group.start_soon(source.resume)
            await anyio.wait_all_tasks_blocked()
            assert await source.is_paused()
        assert not await source.is_paused()

    async def test_a_prepared_layer_that_is_forgotten_is_closed(self, bench: Bench, source: LiveVm) -> None:
        old = bench.tops[source.runtime.pid]
        for _ in range(2):
            layer = bench.layers.create_on(old, 64 << 20)
            path = bench.layers.path(layer)
            await source.prepare_disk(path)
            await source.forget_disk(path)
            assert str(path) not in open_files(source.runtime.pid)
            bench.layers.release(layer)
        assert await source.top_layer() == bench.layers.path(old)

    async def test_what_was_not_prepared_cannot_be_forgotten(self, bench: Bench, source: LiveVm) -> None:
        with pytest.raises(VmmFailed):
            await source.forget_disk(bench.folder / "layers" / "never.qcow2")

    async def test_the_top_layer_is_the_one_switched_to(self, bench: Bench, source: LiveVm) -> None:
        before = await source.top_layer()
        (await bench.capture(source)).close()
        after = await source.top_layer()
        assert before != after == bench.layers.path(bench.tops[source.runtime.pid])

    async def test_a_chain_drawn_together_is_short_and_has_all_data(
        self, bench: Bench, source: LiveVm
    ) -> None:
        child = await bench.fork(source)
        for index in range(3):
            await bench.run(child, bench.store(f"generation{index}", str(index)))
            (await bench.capture(child)).close()
        top = bench.tops[child.runtime.pid]
        long = [path for path, _ in bench.layers.chain(top)]
        await child.collapse_disk(bench.layers.base(top))
        bench.layers.rebased(top)
        short = [path for path, _ in bench.layers.chain(top)]
        assert short == list(dict.fromkeys((long[0], long[-1])))  # Of raw layers one is all.
        assert await child.top_layer() == long[0]
        dropped = {str(path) for path in long[1:-1]}
        assert not dropped & open_files(child.runtime.pid)
        for index in range(3):
            assert await bench.run(child, bench.fetch(f"generation{index}")) == str(index)
        grandchild = await bench.fork(child)
        for index in range(3):
            assert await bench.run(grandchild, bench.fetch(f"generation{index}")) == str(index)
        await bench.end(grandchild)
        await bench.end(child)

    async def test_a_chain_can_be_drawn_together_again_and_again(self, bench: Bench, source: LiveVm) -> None:
        child = await bench.fork(source)
        base = bench.layers.base(bench.tops[child.runtime.pid])
        for index in range(2):
            await bench.run(child, bench.store("round", str(index)))
            (await bench.capture(child)).close()
            await child.collapse_disk(base)
            bench.layers.rebased(bench.tops[child.runtime.pid])
            assert len(bench.layers.chain(bench.tops[child.runtime.pid])) <= 2
        assert await bench.run(child, bench.fetch("round")) == "1"
        await bench.end(child)

    async def test_ending_a_vm_ends_the_drawing_together_of_its_chain(
        self, bench: Bench, source: LiveVm
    ) -> None:
        child = await bench.fork(source)
        (await bench.capture(child)).close()
        base = bench.layers.base(bench.tops[child.runtime.pid])
        os.kill(child.runtime.pid, signal.SIGSTOP)  # So that it does not get to the end.
        failures: list[VmmFailed] = []

        async def collapse() -> None:
            try:
                await child.collapse_disk(base)
            except VmmFailed as failure:
                failures.append(failure)

        async with create_task_group() as group:
            group.start_soon(collapse)
            await anyio.wait_all_tasks_blocked()
            await child.kill()
        assert len(failures) == 1

    # The end of a VM

    async def test_a_guest_that_powers_off_is_told_apart(self, bench: Bench, source: LiveVm) -> None:
        child = await bench.fork(source)
        async with bench.channel(child) as channel:
            await channel.shutdown(grace_s=0.2)
            assert await child.wait_exited() is ExitReason.GUEST_SHUTDOWN

    async def test_a_guest_that_resets_itself_is_told_apart(self, bench: Bench, source: LiveVm) -> None:
        child = await bench.fork(source)
        with pytest.raises(Exception):  # noqa: B017  # However the exec ends: its guest is gone.
            await bench.run(child, bench.reset())
        assert await child.wait_exited() is ExitReason.GUEST_RESET

    async def test_a_vm_that_we_ended_is_told_apart(self, bench: Bench, source: LiveVm) -> None:
        child = await bench.fork(source)
        await child.kill()
        await child.kill()
        assert await child.wait_exited() is ExitReason.KILLED

    async def test_a_vm_that_somebody_else_ended_is_told_apart(self, bench: Bench, source: LiveVm) -> None:
        child = await bench.fork(source)
        os.kill(child.runtime.pid, signal.SIGKILL)
        assert await child.wait_exited() is ExitReason.UNKNOWN
        assert not os.path.exists(f"/proc/{child.runtime.pid}")

    async def test_ending_what_is_over_does_not_change_why(self, bench: Bench, source: LiveVm) -> None:
        child = await bench.fork(source)
        async with bench.channel(child) as channel:
            await channel.shutdown(grace_s=0.2)
            await child.wait_exited()
            await child.kill()
            assert await child.wait_exited() is ExitReason.GUEST_SHUTDOWN

    # Failure

    async def test_devices_that_cannot_be_loaded_are_an_error_with_a_reason_and_the_process_is_gone(
        self, bench: Bench, source: LiveVm
    ) -> None:
        frozen = bench.tops[source.runtime.pid]
        capture = bench.new_capture()
        (good := await bench.capture(source)).close()
        capture.format = good.format
        os.pwrite(capture.devices.fd, b"no device was ever like this", 0)
        capture.seal()
        child = await bench.start_waiting(capture, frozen)
        with pytest.raises(VmmFailed) as failed:
            await child.load(capture)
        assert "time-out" not in str(failed.value)
        assert not os.path.exists(f"/proc/{child.runtime.pid}")
        bench.vms.remove(child)

    @pytest.mark.parametrize(
        "other", [{"hypervisor": "toy"}, {"version": "0.1"}, {"device_model": 0}, {"accelerator": "abacus"}]
    )
    async def test_a_capture_of_another_format_is_refused_and_the_process_is_gone(
        self, bench: Bench, source: LiveVm, other: dict[str, Any]
    ) -> None:
        frozen = bench.tops[source.runtime.pid]
        capture = await bench.capture(source)
        assert capture.format is not None
        capture.format = replace(capture.format, **other)
        child = await bench.start_waiting(capture, frozen)
        with pytest.raises(SnapshotIncompatible, match=str(next(iter(other.values())))):
            await child.load(capture)
        assert not os.path.exists(f"/proc/{child.runtime.pid}")
        bench.vms.remove(child)
        capture.close()

    async def test_a_vmm_that_answers_nothing_is_an_error_in_time(self, bench: Bench, source: LiveVm) -> None:
        child = await bench.fork(source)
        await child.detach()
        bench.vms.remove(child)
        impatient = bench.open_driver(timeout_s=0.3)
        instance = InstanceId(child.agent_socket.parent.name)
        vm = await impatient.adopt(instance, child.agent_socket.parent, child.runtime)
        os.kill(child.runtime.pid, signal.SIGSTOP)
        with pytest.raises(VmmFailed, match=r"did not answer|time"):
            await vm.is_paused()
        await vm.detach()
        for _ in range(4):  # More than may wait to be accepted.
            with pytest.raises(VmmSilent):
                await impatient.adopt(instance, child.agent_socket.parent, child.runtime)
        await impatient.end(child.runtime)
        assert instance not in await bench.driver.find()

    async def test_a_vmm_that_goes_on_can_be_adopted_after_all(self, bench: Bench, source: LiveVm) -> None:
        child = await bench.fork(source)
        await child.detach()
        bench.vms.remove(child)
        folder, instance = child.agent_socket.parent, InstanceId(child.agent_socket.parent.name)
        os.kill(child.runtime.pid, signal.SIGSTOP)
        with pytest.raises(VmmSilent):
            await bench.open_driver(timeout_s=0.3).adopt(instance, folder, child.runtime)
        os.kill(child.runtime.pid, signal.SIGCONT)
        adopted = await bench.open_driver().adopt(instance, folder, child.runtime)
        assert await bench.run(adopted, ("echo", "on")) == "on"
        await adopted.kill()

    async def test_the_end_of_a_vmm_that_nobody_speaks_to_is_seen(self, bench: Bench, source: LiveVm) -> None:
        child = await bench.fork(source)
        await child.detach()
        bench.vms.remove(child)
        driver = bench.open_driver()
        with anyio.move_on_after(0) as scope:
            await driver.wait_gone(child.runtime)
        assert scope.cancelled_caught
        async with create_task_group() as group:
            group.start_soon(driver.wait_gone, child.runtime)
            os.kill(child.runtime.pid, signal.SIGKILL)
        os.waitpid(child.runtime.pid, 0)  # noqa: ASYNC222  # Its parent is still here, unlike a real daemon's.
        await driver.wait_gone(child.runtime)

    async def test_calls_after_the_end_of_the_process_are_errors(self, bench: Bench, source: LiveVm) -> None:
        child = await bench.fork(source)
        await child.kill()
        with pytest.raises(VmmFailed):
            await child.is_paused()
        with pytest.raises(VmmFailed):
            await child.top_layer()

    # A daemon that comes back

    async def test_every_running_vm_is_found_by_another_driver_of_the_same_folder(
        self, bench: Bench, source: LiveVm
    ) -> None:
        child = await bench.fork(source)
        found = await bench.open_driver().find()
        assert {found[InstanceId(vm.agent_socket.parent.name)].pid for vm in (source, child)} == {
            source.runtime.pid,
            child.runtime.pid,
        }
        await bench.end(child)
        assert InstanceId(child.agent_socket.parent.name) not in await bench.open_driver().find()

    async def test_an_adopted_vm_goes_on_and_can_be_forked(self, bench: Bench, source: LiveVm) -> None:
        child = await bench.fork(source)
        await bench.run(child, bench.remember("before", "restart"))
        await child.detach()
        bench.vms.remove(child)
        instance = InstanceId(child.agent_socket.parent.name)
        other = bench.open_driver()
        runtime = (await other.find())[instance]
        adopted = bench.keep(
            await other.adopt(instance, child.agent_socket.parent, runtime), bench.tops[runtime.pid]
        )
        assert not await adopted.is_paused()
        grandchild = await bench.fork(adopted)
        assert await bench.run(grandchild, bench.recall("before")) == "restart"
        async with bench.channel(adopted) as channel:
            await channel.shutdown(grace_s=0.2)
            assert await adopted.wait_exited() is ExitReason.GUEST_SHUTDOWN
        await bench.end(grandchild)

    async def test_a_guest_left_paused_is_found_paused(self, bench: Bench, source: LiveVm) -> None:
        child = await bench.fork(source)
        pause = child.paused()
        await pause.__aenter__()
        await child.detach()  # As if the daemon had been killed here.
        bench.vms.remove(child)
        instance = InstanceId(child.agent_socket.parent.name)
        adopted = await bench.open_driver().adopt(instance, child.agent_socket.parent, child.runtime)
        assert await adopted.is_paused()
        await adopted.resume()
        assert await bench.run(adopted, ("echo", "on")) == "on"
        await adopted.kill()
        with pytest.raises(VmmFailed):
            await pause.__aexit__(None, None, None)

    async def test_a_layer_that_was_left_prepared_is_closed_when_its_vm_is_adopted(
        self, bench: Bench, source: LiveVm
    ) -> None:
        child = await bench.fork(source)
        await bench.run(child, bench.store("before", "yes"))
        left = bench.layers.create_on(bench.tops[child.runtime.pid], 64 << 20)
        await child.prepare_disk(bench.layers.path(left))
        await child.detach()
        bench.vms.remove(child)
        instance = InstanceId(child.agent_socket.parent.name)
        adopted = await bench.open_driver().adopt(instance, child.agent_socket.parent, child.runtime)
        assert str(bench.layers.path(left)) not in open_files(child.runtime.pid)
        assert await bench.run(adopted, bench.fetch("before")) == "yes"
        await adopted.kill()

    async def test_a_vm_that_cannot_be_adopted_can_be_ended(self, bench: Bench, source: LiveVm) -> None:
        child = await bench.fork(source)
        await child.detach()
        bench.vms.remove(child)
        driver = bench.open_driver()
        await driver.end(child.runtime)
        # Its parent is still here, unlike a real daemon's.
        os.waitpid(child.runtime.pid, 0)  # noqa: ASYNC222
        await driver.end(child.runtime)
        with pytest.raises(VmmFailed, match="gone"):
            await driver.adopt(
                InstanceId(child.agent_socket.parent.name), child.agent_socket.parent, child.runtime
            )
