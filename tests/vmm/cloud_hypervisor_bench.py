"""The fake Cloud Hypervisor as a bench."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ramet.vmm.cloud_hypervisor.driver import PROGRAM_VARIABLE, CloudHypervisorDriver
from ramet.vmm.cloud_hypervisor.vm import CloudHypervisorVm
from ramet.vmm.jail import JailMode
from ramet.vmm.port import Vm
from ramet.vmm.rest_vm import Timeouts
from tests.vmm.fake_cloud_hypervisor.program import FAULTS_VARIABLE, NEWEST, VERSION_VARIABLE
from tests.vmm.fake_rest_bench import FakeRestBench, jail_config

PROGRAM = Path(__file__).parent / "fake_cloud_hypervisor" / "cloud-hypervisor"


class CloudHypervisorBench(FakeRestBench):
    program = PROGRAM
    program_variable = PROGRAM_VARIABLE
    version_variable = VERSION_VARIABLE
    faults_variable = FAULTS_VARIABLE
    limiter = "rate_limiter_config"

    def __init__(self, folder: Path, version: str = NEWEST, jail: JailMode = JailMode.OFF) -> None:
        self.jail = jail_config(jail)
        super().__init__(folder, version)

    def open_with(self, timeouts: Timeouts, environment: Mapping[str, str]) -> CloudHypervisorDriver:
        return CloudHypervisorDriver.open(self.instances, timeouts, environment, self.jail)

    async def drives(self, vm: Vm) -> list[dict[str, Any]]:
        assert isinstance(vm, CloudHypervisorVm)
        info: Any = await vm._api.get("/api/v1/vm.info")
        return list(info["config"]["disks"])
