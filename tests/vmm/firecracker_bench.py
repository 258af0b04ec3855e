"""The fake Firecracker as a bench."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ramet.guest.channel import Channel
from ramet.vmm.firecracker.backend import Backend, Choice, MemoryFacts
from ramet.vmm.firecracker.driver import PROGRAM_VARIABLE, RESTORE_COUNT_MAX, FirecrackerDriver
from ramet.vmm.firecracker.vm import FirecrackerVm, Pager
from ramet.vmm.jail import JailMode
from ramet.vmm.port import Vm
from ramet.vmm.rest_vm import Timeouts
from tests.vmm.bench import LiveVm
from tests.vmm.fake_firecracker.faults import VARIABLE
from tests.vmm.fake_firecracker.program import NEWEST, VERSION_VARIABLE
from tests.vmm.fake_rest_bench import FakeRestBench, jail_config

PROGRAM = Path(__file__).parent / "fake_firecracker" / "firecracker"


def always_paged(_: MemoryFacts) -> Backend:
    """Have the pager serve whatever it can: what lies in memory would not be."""
    return Backend.UFFD


class FirecrackerBench(FakeRestBench):
    program = PROGRAM
    program_variable = PROGRAM_VARIABLE
    version_variable = VERSION_VARIABLE
    faults_variable = VARIABLE
    limiter = "rate_limiter"

    def __init__(
        self,
        folder: Path,
        version: str = NEWEST,
        pager: Pager | None = None,
        jail: JailMode = JailMode.OFF,
    ) -> None:
        self.jail = jail_config(jail)
        self.pager = pager
        self.choose: Choice = always_paged
        self.restore_count_max = RESTORE_COUNT_MAX
        super().__init__(folder, version)

    def open_with(self, timeouts: Timeouts, environment: Mapping[str, str]) -> FirecrackerDriver:
        return FirecrackerDriver.open(
            self.instances,
            timeouts,
            pager=self.pager,
            environment=environment,
            jail=self.jail,
            choose=self.choose,
            restore_count_max=self.restore_count_max,
        )

    async def drives(self, vm: Vm) -> list[dict[str, Any]]:
        assert isinstance(vm, FirecrackerVm)
        config: Any = await vm._api.get("/vm/config")
        return list(config["drives"])

    async def thaw(self, vm: LiveVm, channel: Channel) -> None:
        # A snapshot ends the guest's connections.
        async with self.channel(vm) as again:
            await again.thaw()
