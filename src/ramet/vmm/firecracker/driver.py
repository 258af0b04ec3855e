"""Firecracker, 1.10 or newer: starts its processes and finds them again.

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

import anyio
from anyio import to_thread

from ramet.core.errors import Broken
from ramet.core.ids import InstanceId
from ramet.core.spec import Runtime
from ramet.linux.plain_file import open_plain
from ramet.linux.process import HeldProcess, list_command_lines, read_boot_id, read_start_ticks
from ramet.vmm.firecracker.backend import Choice, choose_backend
from ramet.vmm.firecracker.build import (
    AGENT_SOCKET,
    API_SOCKET,
    CONSOLE,
    LOG,
    METRICS,
    NAME_PREFIX,
    demand_buildable,
)
from ramet.vmm.firecracker.features import NETWORK_OVERRIDES, Release
from ramet.vmm.firecracker.vm import ACCELERATOR, NAME, FirecrackerVm, Pager, Restoring
from ramet.vmm.jail import UID_FIRST, USERFAULTFD, Jail, JailConfig, cell_of
from ramet.vmm.port import (
    Capture,
    LiveFork,
    LiveForkUnsupported,
    Machine,
    VmmFailed,
)
from ramet.vmm.raw_overlay import fill_disks
from ramet.vmm.rest_vm import Timeouts, adopt, end_process, ended_unless_started

PROGRAM: Final = "firecracker"
RESTORE_COUNT_MAX: Final = 32
PROGRAM_VARIABLE: Final = "RAMET_FIRECRACKER"
"""Of the environment: where the program is, if not on the path."""


class FirecrackerDriver(LiveFork):
    """Starts Firecracker.

    Args:
        instances_folder: the folder under which every VM of this daemon has its own; VMMs are found by it.
        pager: serves the memory of children, if `choose` says so; without, they map its file.
        restore_count_max: how many loads are under way at a time; others wait for a place.
        jail: what each process is put into; without, it runs as we do. Those that are found may have another.
        environment: of the processes; without, ours.
    """

    name = NAME
    accelerator = ACCELERATOR
    disk_form = "raw"
    limits_disks = True
    has_balloon = True
    speaks_vsock = True
    opens_taps = True

    def __init__(
        self,
        program: Path,
        release: Release,
        instances_folder: Path,
        timeouts: Timeouts,
        pager: Pager | None = None,
        environment: Mapping[str, str] | None = None,
        jail: Jail | None = None,
        uid_first: int = UID_FIRST,
        choose: Choice = choose_backend,
        restore_count_max: int = RESTORE_COUNT_MAX,
    ) -> None:
        self.version = release.text
        self._program, self._release, self._instances_folder = program, release, instances_folder
        self._timeouts, self._pager, self._environment = timeouts, pager, environment
        self._jail, self._uid_first = jail, uid_first
        self._choose, self._restores = choose, anyio.Semaphore(restore_count_max)

    @classmethod
    def open(
        cls,
        instances_folder: Path,
        timeouts: Timeouts | None = None,
        pager: Pager | None = None,
        environment: Mapping[str, str] | None = None,
        jail: JailConfig | None = None,
        choose: Choice = choose_backend,
        restore_count_max: int = RESTORE_COUNT_MAX,
        program: Path | None = None,
    ) -> "FirecrackerDriver":
        """Find Firecracker on this host; `program`: where it is, if that is known.

        Raises:
            Broken: there is none, it is too old, or cannot be put into the jail that it must have.
        """
        known = os.environ if environment is None else environment
        found = program or known.get(PROGRAM_VARIABLE) or shutil.which(PROGRAM)
        if found is None:
            raise Broken(
                f"{PROGRAM} is not installed",
                remedy="put it on the path, or say where it is: hypervisor.firecracker_binary_path",
            )
        try:
            asked = subprocess.run(
                [found, "--version"], stdout=subprocess.PIPE, text=True, check=True, env=environment
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise Broken(f"{found} does not run: {error}", remedy="see `ramet doctor`") from error
        release = Release.told(asked.stdout)
        config, path = jail or JailConfig(), Path(found).absolute()
        made, limits = Jail.open(NAME, path, config, environment), timeouts or Timeouts()
        return cls(
            path,
            release,
            instances_folder,
            limits,
            pager,
            environment,
            made,
            config.uid_first,
            choose,
            restore_count_max,
        )

    @property
    def is_jailed(self) -> bool:
        """Whether what it starts is put into a jail."""
        return self._jail is not None

    @property
    def takes_packed(self) -> bool:
        return self._pager is not None and self._pager.is_there

    async def boot(self, machine: Machine) -> FirecrackerVm:
        demand_buildable(machine)
        try:
            await to_thread.run_sync(fill_disks, machine)
        except OSError as error:
            raise VmmFailed(f"the guest's disk cannot be made: {error}") from error
        vm = await self._spawn(machine, [])
        async with ended_unless_started(vm):
            await vm.start(machine)
        return vm

    async def start_waiting(self, machine: Machine, capture: Capture) -> FirecrackerVm:
        demand_buildable(machine)
        if machine.nic is not None and not self._release.has(NETWORK_OVERRIDES):
            raise LiveForkUnsupported(
                f"Firecracker {self.version} cannot give a child a network card of its own",
                remedy="install Firecracker 1.12 or newer",
            )
        is_first = not (machine.folder / LOG).exists()
        vm = await self._spawn(machine, [] if capture.is_packed else [capture.mapped.fd])
        async with ended_unless_started(vm):
            restoring = Restoring(self._pager, self._choose, self._restores, is_first)
            await vm.wait_for(machine, capture, restoring)
        return vm

    async def find(self) -> dict[InstanceId, Runtime]:
        found: dict[InstanceId, Runtime] = {}
        for pid, arguments in list_command_lines():
            options = dict(pairwise(arguments))
            name = options.get("--id", "")
            if options.get("--api-sock") != API_SOCKET or not name.startswith(NAME_PREFIX):
                continue
            instance = InstanceId(name.removeprefix(NAME_PREFIX))
            try:
                if Path(os.readlink(f"/proc/{pid}/cwd")) != self._instances_folder / instance:
                    continue
                ticks = read_start_ticks(pid)
            except (FileNotFoundError, ProcessLookupError):
                continue
            found[instance] = Runtime(pid, ticks, read_boot_id(), {})
        return found

    async def adopt(self, instance: InstanceId, folder: Path, runtime: Runtime) -> FirecrackerVm:
        def new_vm(process: HeldProcess) -> FirecrackerVm:
            try:
                cell = cell_of(runtime.pid, folder, self._uid_first)
            except OSError as error:
                raise VmmFailed("the VMM is gone", instance=instance) from error
            return FirecrackerVm(process, folder, self._timeouts, cell)

        return await adopt(instance, runtime, new_vm, self._timeouts.adopt_s)

    async def end(self, runtime: Runtime) -> None:
        await end_process(runtime)

    async def _spawn(self, machine: Machine, passed: list[int]) -> FirecrackerVm:
        folder = machine.folder
        argv = [str(self._program), "--id", f"{NAME_PREFIX}{machine.instance}", "--api-sock", API_SOCKET]
        argv += ["--log-path", LOG, "--level", "Info", "--metrics-path", METRICS]
        environment, cell = self._environment, None
        try:
            for left in (API_SOCKET, AGENT_SOCKET):  # Of an earlier run: Firecracker takes no used name.
                (folder / left).unlink(missing_ok=True)
            for name in (LOG, METRICS):  # Before 1.14 they must be there.
                os.close(open_plain(folder / name, os.O_WRONLY | os.O_CREAT, 0o666))
            if self._jail is not None:
                own = [folder / name for name in (LOG, METRICS)]
                cell = await to_thread.run_sync(self._jail.admit, machine, own, passed)
                devices = [] if self._pager is None else [USERFAULTFD]
                argv = self._jail.command(cell, machine, argv, devices)
                environment = self._jail.environment(environment)
            process = HeldProcess.start(
                argv, output=folder / CONSOLE, cwd=folder, pass_fds=passed, environment=environment
            )
        except OSError as error:
            raise VmmFailed(f"Firecracker cannot be started: {error}") from error
        return FirecrackerVm(process, folder, self._timeouts, cell)
