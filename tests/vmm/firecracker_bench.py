"""The fake Firecracker as a bench: the guest of the in-process fake, behind the real API."""

import os
import sys
from pathlib import Path

from ramet.guest.channel import Channel
from ramet.vmm.firecracker.backend import Backend, Choice, MemoryFacts
from ramet.vmm.firecracker.driver import PROGRAM_VARIABLE, RESTORE_COUNT_MAX, FirecrackerDriver
from ramet.vmm.firecracker.jail import JailConfig, JailMode
from ramet.vmm.firecracker.vm import Pager
from ramet.vmm.rest_vm import Timeouts
from tests.vmm.bench import Bench, LiveVm
from tests.vmm.fake_firecracker.faults import VARIABLE
from tests.vmm.fake_firecracker.program import NEWEST, VERSION_VARIABLE
from tests.vmm.raw_layers import RawLayerStore

PROGRAM = Path(__file__).parent / "fake_firecracker" / "firecracker"
NEEDED = (*(Path(name) for name in ("/usr", "/bin", "/lib", "/lib64")), Path(sys.prefix), PROGRAM.parents[3])
"""By the program, which is one of Python."""


def always_paged(_: MemoryFacts) -> Backend:
    """Have the pager serve whatever it can: what lies in memory would not be."""
    return Backend.UFFD


class FirecrackerBench(Bench):
    memory_bytes = 6 << 20

    def __init__(
        self,
        folder: Path,
        version: str = NEWEST,
        pager: Pager | None = None,
        jail: JailMode = JailMode.OFF,
    ) -> None:
        self.jail = JailConfig(jail, program_folders=NEEDED if jail is JailMode.ON else ())
        self.kernel = self.initramfs = self.root = folder / "nothing"
        self.kernel.touch()
        self.faults = folder / "faults"
        self.faults.mkdir()
        self.version, self.pager = version, pager
        self.choose: Choice = always_paged
        self.restore_count_max = RESTORE_COUNT_MAX
        super().__init__(folder)
        self.layers = RawLayerStore(folder / "layers")

    def open_driver(
        self, timeout_s: float | None = None, load_timeout_s: float | None = None
    ) -> FirecrackerDriver:
        environment = os.environ | {
            PROGRAM_VARIABLE: str(PROGRAM),
            VERSION_VARIABLE: self.version,
            VARIABLE: str(self.faults),
        }
        timeouts = None if timeout_s is None else Timeouts(timeout_s, timeout_s, timeout_s, timeout_s)
        if load_timeout_s is not None:
            timeouts = Timeouts(load_s=load_timeout_s)
        return FirecrackerDriver.open(
            self.instances,
            timeouts,
            pager=self.pager,
            environment=environment,
            jail=self.jail,
            choose=self.choose,
            restore_count_max=self.restore_count_max,
        )

    async def thaw(self, vm: LiveVm, channel: Channel) -> None:
        # A snapshot ends the guest's connections.
        async with self.channel(vm) as again:
            await again.thaw()

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
