"""Cloud Hypervisor, 51 or newer: starts its processes and finds them again.

Each has a session of its own, its instance's folder as working directory, and its output in files. Its API's
socket appears there, and is waited for by inotify; after a restart of the daemon it is found by its name.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Final

from anyio import to_thread

from ramet.core.errors import Broken
from ramet.core.ids import InstanceId
from ramet.core.spec import Runtime
from ramet.linux.plain_file import create_plain, open_plain
from ramet.linux.process import HeldProcess, list_command_lines, read_boot_id, read_start_ticks
from ramet.vmm.cloud_hypervisor.build import (
    AGENT_SOCKET,
    API_LOCK,
    API_SOCKET,
    CONSOLE,
    EVENTS,
    LOG,
    demand_buildable,
)
from ramet.vmm.cloud_hypervisor.features import Release
from ramet.vmm.cloud_hypervisor.vm import ACCELERATOR, NAME, CloudHypervisorVm
from ramet.vmm.jail import UID_FIRST, Jail, JailConfig, cell_of
from ramet.vmm.port import Capture, LiveFork, Machine, VmmFailed
from ramet.vmm.raw_overlay import fill_disks
from ramet.vmm.rest_vm import Timeouts, adopt, end_process, ended_unless_started

PROGRAM: Final = "cloud-hypervisor"
PROGRAM_VARIABLE: Final = "RAMET_CLOUD_HYPERVISOR"
"""Of the environment: where the program is, if not on the path."""
_API_OPTION: Final = ("--api-socket", f"path={API_SOCKET}")


class CloudHypervisorDriver(LiveFork):
    """Starts Cloud Hypervisor.

    Args:
        instances_folder: the folder under which every VM of this daemon has its own; VMMs are found by it.
        jail: what each process is put into; without, it runs as we do. Those that are found may have another.
        environment: of the processes; without, ours.
    """

    name = NAME
    accelerator = ACCELERATOR
    disk_form = "raw"
    limits_disks = True
    has_balloon = True
    speaks_vsock = True
    plugs_memory = True

    def __init__(
        self,
        program: Path,
        release: Release,
        instances_folder: Path,
        timeouts: Timeouts,
        environment: Mapping[str, str] | None = None,
        jail: Jail | None = None,
        uid_first: int = UID_FIRST,
    ) -> None:
        self.version = release.text
        self._program, self._instances_folder = program, instances_folder
        self._timeouts, self._environment = timeouts, environment
        self._jail, self._uid_first = jail, uid_first

    @classmethod
    def open(
        cls,
        instances_folder: Path,
        timeouts: Timeouts | None = None,
        environment: Mapping[str, str] | None = None,
        jail: JailConfig | None = None,
    ) -> "CloudHypervisorDriver":
        """Find Cloud Hypervisor on this host.

        Raises:
            Broken: there is none, it is too old, or cannot be put into the jail that it must have.
        """
        known = os.environ if environment is None else environment
        program = known.get(PROGRAM_VARIABLE) or shutil.which(PROGRAM)
        if program is None:
            raise Broken(
                f"{PROGRAM} is not installed",
                remedy=f"put it on the path, or say where it is: {PROGRAM_VARIABLE}",
            )
        try:
            asked = subprocess.run(
                [program, "--version"], stdout=subprocess.PIPE, text=True, check=True, env=environment
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise Broken(f"{program} does not run: {error}", remedy="see `ramet doctor`") from error
        release = Release.told(asked.stdout)
        config, path = jail or JailConfig(), Path(program).absolute()
        made = Jail.open(NAME, path, config, environment)
        limits = timeouts or Timeouts()
        return cls(path, release, instances_folder, limits, environment, made, config.uid_first)

    @property
    def is_jailed(self) -> bool:
        """Whether what it starts is put into a jail."""
        return self._jail is not None

    async def boot(self, machine: Machine) -> CloudHypervisorVm:
        demand_buildable(machine)
        try:
            await to_thread.run_sync(fill_disks, machine)
        except OSError as error:
            raise VmmFailed(f"the guest's disk cannot be made: {error}") from error
        vm = await self._spawn(machine, [])
        async with ended_unless_started(vm):
            await vm.start(machine)
        return vm

    async def start_waiting(self, machine: Machine, capture: Capture) -> CloudHypervisorVm:
        demand_buildable(machine)
        vm = await self._spawn(machine, [capture.mapped.fd])
        async with ended_unless_started(vm):
            await vm.wait_for(machine, capture)
        return vm

    async def find(self) -> dict[InstanceId, Runtime]:
        found: dict[InstanceId, Runtime] = {}
        for pid, arguments in list_command_lines():
            if _API_OPTION not in pairwise(arguments):
                continue
            try:
                folder = Path(os.readlink(f"/proc/{pid}/cwd"))
                if folder.parent != self._instances_folder:
                    continue
                ticks = read_start_ticks(pid)
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[InstanceId(folder.name)] = Runtime(pid, ticks, read_boot_id(), {})
        return found

    async def adopt(self, instance: InstanceId, folder: Path, runtime: Runtime) -> CloudHypervisorVm:
        def new_vm(process: HeldProcess) -> CloudHypervisorVm:
            try:
                cell = cell_of(runtime.pid, folder, self._uid_first)
            except OSError as error:
                raise VmmFailed("the VMM is gone", instance=instance) from error
            return CloudHypervisorVm(process, folder, self._timeouts, cell)

        return await adopt(instance, runtime, new_vm, self._timeouts.adopt_s)

    async def end(self, runtime: Runtime) -> None:
        await end_process(runtime)

    async def _spawn(self, machine: Machine, passed: list[int]) -> CloudHypervisorVm:
        folder, environment, cell = machine.folder, self._environment, None
        # -v: without it the log says nothing of an end that was in order.
        argv = [str(self._program), *_API_OPTION, "--event-monitor", f"path={EVENTS}", "-v"]
        try:
            for left in (API_SOCKET, API_LOCK, AGENT_SOCKET):  # Of an earlier run: it takes no used name.
                (folder / left).unlink(missing_ok=True)
            os.close(create_plain(folder / EVENTS))
            if self._jail is not None:
                os.close(open_plain(folder / CONSOLE, os.O_WRONLY | os.O_CREAT, 0o666))
                own = [folder / name for name in (EVENTS, CONSOLE)]
                cell = await to_thread.run_sync(self._jail.admit, machine, own, passed)
                argv = self._jail.command(cell, machine, argv)
                environment = self._jail.environment(environment)
            process = HeldProcess.start(
                argv, output=folder / LOG, cwd=folder, pass_fds=passed, environment=environment
            )
        except OSError as error:
            raise VmmFailed(f"Cloud Hypervisor cannot be started: {error}") from error
        return CloudHypervisorVm(process, folder, self._timeouts, cell)
