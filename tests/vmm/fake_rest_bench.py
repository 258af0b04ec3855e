"""A fake VMM that is spoken to over REST, as a bench: the guest of the in-process fake, behind a real API."""

import os
import sys
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from ramet.vmm.jail import JailConfig, JailMode
from ramet.vmm.port import LiveFork, Vm
from ramet.vmm.rest_vm import Timeouts
from tests.vmm.bench import Bench
from tests.vmm.raw_layers import RawLayerStore

NEEDED = (
    *(Path(name) for name in ("/usr", "/bin", "/lib", "/lib64")),
    Path(sys.prefix),
    Path(__file__).parents[2],
)
"""By such a program, which is one of Python."""


def jail_config(mode: JailMode) -> JailConfig:
    """Return how a jail is made for such a program."""
    return JailConfig(mode, program_folders=NEEDED if mode is JailMode.ON else ())


class FakeRestBench(Bench):
    """`faults`: the folder in which its calls are armed to go wrong."""

    memory_bytes = 6 << 20
    program: ClassVar[Path]
    program_variable: ClassVar[str]
    version_variable: ClassVar[str]
    faults_variable: ClassVar[str]
    limiter: ClassVar[str]

    def __init__(self, folder: Path, version: str) -> None:
        self.kernel = self.initramfs = self.root = folder / "nothing"
        self.kernel.touch()
        self.faults = folder / "faults"
        self.faults.mkdir()
        self.version = version
        super().__init__(folder)
        self.layers = RawLayerStore(folder / "layers")

    def open_driver(
        self,
        timeout_s: float | None = None,
        start_timeout_s: float | None = None,
        load_timeout_s: float | None = None,
        command_timeout_s: float | None = None,
    ) -> LiveFork:
        """Return another driver of the same folder; `timeout_s` stands for every limit that is not given."""
        usual = Timeouts() if timeout_s is None else Timeouts(timeout_s, timeout_s, timeout_s, timeout_s)
        timeouts = Timeouts(
            start_timeout_s or usual.start_s,
            usual.adopt_s,
            load_timeout_s or usual.load_s,
            command_timeout_s or usual.command_s,
        )
        environment = os.environ | {
            self.program_variable: str(self.program),
            self.version_variable: self.version,
            self.faults_variable: str(self.faults),
        }
        return self.open_with(timeouts, environment)

    @abstractmethod
    def open_with(self, timeouts: Timeouts, environment: Mapping[str, str]) -> LiveFork:
        """Return a driver of the fake in the bench's folder."""

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

    async def disk_rates(self, vm: Vm) -> set[int | None]:
        buckets = [(drive.get(self.limiter) or {}).get("bandwidth") for drive in await self.drives(vm)]
        return {bucket and round(bucket["size"] * 1000 / bucket["refill_time"]) for bucket in buckets}

    @abstractmethod
    async def drives(self, vm: Vm) -> list[dict[str, Any]]:
        """Return what the VMM says of its disks."""

    def workload(self) -> tuple[str, ...]:
        return ("sleep",)
