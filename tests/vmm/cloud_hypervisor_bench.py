"""The fake Cloud Hypervisor as a bench: the guest of the in-process fake, behind the real API."""

import os
from pathlib import Path

from ramet.vmm.cloud_hypervisor.driver import PROGRAM_VARIABLE, CloudHypervisorDriver
from ramet.vmm.rest_vm import Timeouts
from tests.vmm.bench import Bench
from tests.vmm.fake_cloud_hypervisor.program import FAULTS_VARIABLE, NEWEST, VERSION_VARIABLE
from tests.vmm.raw_layers import RawLayerStore

PROGRAM = Path(__file__).parent / "fake_cloud_hypervisor" / "cloud-hypervisor"


class CloudHypervisorBench(Bench):
    memory_bytes = 6 << 20
    kernel = initramfs = root = Path("/dev/null")

    def __init__(self, folder: Path, version: str = NEWEST) -> None:
        self.faults = folder / "faults"
        self.faults.mkdir()
        self.version = version
        super().__init__(folder)
        self.layers = RawLayerStore(folder / "layers")

    def open_driver(
        self, timeout_s: float | None = None, load_timeout_s: float | None = None
    ) -> CloudHypervisorDriver:
        environment = os.environ | {
            PROGRAM_VARIABLE: str(PROGRAM),
            VERSION_VARIABLE: self.version,
            FAULTS_VARIABLE: str(self.faults),
        }
        timeouts = None if timeout_s is None else Timeouts(timeout_s, timeout_s, timeout_s, timeout_s)
        if load_timeout_s is not None:
            timeouts = Timeouts(load_s=load_timeout_s)
        return CloudHypervisorDriver.open(self.instances, timeouts, environment)

    def remember(self, name: str, value: str) -> tuple[str, ...]:
        return ("set", name, value)

    def recall(self, name: str) -> tuple[str, ...]:
        return ("get", name)

    def store(self, name: str, value: str) -> tuple[str, ...]:
        return ("write", name, value)

    def fetch(self, name: str) -> tuple[str, ...]:
        return ("read", name)

    def reset(self) -> tuple[str, ...]:
        return ("reset",)

    def workload(self) -> tuple[str, ...]:
        return ("sleep",)
