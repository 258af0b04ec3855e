"""The fake Cloud Hypervisor as a bench."""

from collections.abc import Mapping
from pathlib import Path

from ramet.vmm.cloud_hypervisor.driver import PROGRAM_VARIABLE, CloudHypervisorDriver
from ramet.vmm.jail import JailMode
from ramet.vmm.rest_vm import Timeouts
from tests.vmm.fake_cloud_hypervisor.program import FAULTS_VARIABLE, NEWEST, VERSION_VARIABLE
from tests.vmm.fake_rest_bench import FakeRestBench, jail_config

PROGRAM = Path(__file__).parent / "fake_cloud_hypervisor" / "cloud-hypervisor"


class CloudHypervisorBench(FakeRestBench):
    program = PROGRAM
    program_variable = PROGRAM_VARIABLE
    version_variable = VERSION_VARIABLE
    faults_variable = FAULTS_VARIABLE

    def __init__(self, folder: Path, version: str = NEWEST, jail: JailMode = JailMode.OFF) -> None:
        self.jail = jail_config(jail)
        super().__init__(folder, version)

    def open_with(self, timeouts: Timeouts, environment: Mapping[str, str]) -> CloudHypervisorDriver:
        return CloudHypervisorDriver.open(self.instances, timeouts, environment, self.jail)
