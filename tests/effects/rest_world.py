"""Hosts on which instances run on strict fakes of Firecracker or Cloud Hypervisor, behind real drivers."""

import os
from abc import abstractmethod
from pathlib import Path
from typing import ClassVar

import anyio
import anyio.lowlevel

from ramet.core.ids import InstanceId
from ramet.linux.process import list_command_lines
from ramet.store.paths import DataFolder
from ramet.vmm.cloud_hypervisor.driver import PROGRAM_VARIABLE, CloudHypervisorDriver
from ramet.vmm.fake.faults import Faults
from ramet.vmm.firecracker.driver import FirecrackerDriver
from ramet.vmm.jail import JailConfig, JailMode
from ramet.vmm.port import Driver
from tests.effects.world import Daemon, World
from tests.vmm import cloud_hypervisor_bench, firecracker_bench
from tests.vmm.fake_cloud_hypervisor import program as cloud_hypervisor
from tests.vmm.fake_firecracker import faults as armed
from tests.vmm.fake_firecracker import program as firecracker
from tests.vmm.fake_firecracker.faults import Kind


class RestWorld(World):
    """A host with a fake VMM that is spoken to over REST.

    `failing`: the folder in which its calls are armed to fail. Calls are by what they are part of.
    """

    program: ClassVar[Path]
    newest: ClassVar[str]
    older: ClassVar[str]
    boot_calls: ClassVar[tuple[str, ...]]
    capture_calls: ClassVar[tuple[str, ...]]
    load_calls: ClassVar[tuple[str, ...]]
    child_calls: ClassVar[tuple[str, ...]]
    """Those of a load that a source is never asked."""
    opens_taps: ClassVar[bool]
    """By name: its TAPs are persistent."""

    def __init__(self, folder: Path, images: Path) -> None:
        super().__init__(folder, images)
        self.memory_bytes = 2 << 20
        self.version = self.newest
        self.failing = folder / "faults"
        self.failing.mkdir()

    @abstractmethod
    def open_driver(self, data: DataFolder, faults: Faults) -> Driver: ...

    def processes(self) -> dict[int, InstanceId]:
        found = {}
        for pid, arguments in list_command_lines():
            if str(self.program) in arguments and "--version" not in arguments:
                try:
                    folder = Path(os.readlink(f"/proc/{pid}/cwd"))
                except FileNotFoundError:
                    continue  # It has just ended.
                if folder.is_relative_to(self.folder):
                    found[pid] = InstanceId(folder.name)
        return found

    def pid_of(self, instance: InstanceId) -> int:
        (pid,) = (pid for pid, found in self.processes().items() if found == instance)
        return pid

    def fail(self, call: str, kind: Kind = "fail") -> None:
        armed.arm(self.failing, kind, call)

    async def wait_taken(self, call: str, kind: Kind) -> None:
        """Return when a call has come to an armed fault."""
        with anyio.fail_after(60):
            while not armed.is_taken(self.failing, kind, call):
                await anyio.lowlevel.checkpoint()


class FirecrackerWorld(RestWorld):
    program = firecracker_bench.PROGRAM
    newest = firecracker.NEWEST
    older = "1.15.0"
    boot_calls = ("PUT /network-interfaces/nic", "PUT /actions")
    capture_calls = ("PATCH /drives/overlay", "PUT /snapshot/create")
    load_calls = child_calls = ("PUT /snapshot/load",)
    opens_taps = True

    def open_driver(self, data: DataFolder, faults: Faults) -> Driver:
        environment = os.environ | {
            firecracker.VERSION_VARIABLE: self.version,
            armed.VARIABLE: str(self.failing),
        }
        return FirecrackerDriver.open(
            data.instances, environment=environment, program=self.program, jail=JailConfig(JailMode.OFF)
        )


class CloudHypervisorWorld(RestWorld):
    program = cloud_hypervisor_bench.PROGRAM
    newest = cloud_hypervisor.NEWEST
    older = "52.0"
    boot_calls = ("PUT vm.create", "PUT vm.add-net", "PUT vm.boot")
    capture_calls = ("PUT vm.pause", "PUT vm.snapshot")
    load_calls = ("PUT vm.restore", "PUT vm.resume")
    child_calls = load_calls[:1]
    opens_taps = False

    def open_driver(self, data: DataFolder, faults: Faults) -> Driver:
        environment = os.environ | {
            PROGRAM_VARIABLE: str(self.program),
            cloud_hypervisor.VERSION_VARIABLE: self.version,
            cloud_hypervisor.FAULTS_VARIABLE: str(self.failing),
        }
        return CloudHypervisorDriver.open(
            data.instances, environment=environment, jail=JailConfig(JailMode.OFF)
        )


async def settled(world: World, **expected: int) -> None:
    """Return when the host has as many of each kind as expected."""
    with anyio.fail_after(30):
        while {kind: len(world.leftovers()[kind]) for kind in expected} != expected:
            await anyio.lowlevel.checkpoint()


async def create(daemon: Daemon) -> None:
    await daemon.fleet.create("src", daemon.spec)
    await daemon.run("src", "set", "warm", "memory")
    await daemon.run("src", "write", "warm", "disk")


async def check_warm(daemon: Daemon, name: str) -> None:
    """It is itself, and has what its source had."""
    memory, view = await daemon.memory(name), daemon.fleet.get(name)
    assert (memory["hostname"], memory["ip"]) == (name, view.ip)
    assert memory["machine_id"] == view.record.identity.machine_id
    assert memory["variables"] == {"warm": "memory"}
    assert await daemon.run(name, "read", "warm") == "disk"
    assert await daemon.is_well(name)
