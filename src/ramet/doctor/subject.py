"""What of the settings the checks need."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from ramet.net.bridge import BridgeConfig


@dataclass(frozen=True, slots=True)
class Subject:
    """The installation that is looked at.

    Attributes:
        data_dir: the data folder, which need not exist yet.
        socket: the API's unix socket.
        kernel_package: the .deb the guests' kernel is taken from, None for an installed one.
        bridge: the guests' bridge.
        default_hypervisor: of instances that name none; None: the first that can be used.
        firecracker: where Firecracker is, None where the environment says, or on the path.
    """

    data_dir: Path = Path("/var/lib/ramet")
    socket: Path = Path("/run/ramet/api.sock")
    kernel_package: Path | None = None
    bridge: BridgeConfig = field(default_factory=BridgeConfig)
    default_hypervisor: str | None = None
    firecracker: str | None = None

    @property
    def firecracker_program(self) -> str:
        """What is started for Firecracker."""
        return self.firecracker or os.environ.get("RAMET_FIRECRACKER") or "firecracker"

    @property
    def cloud_hypervisor_program(self) -> str:
        """What is started for Cloud Hypervisor."""
        return os.environ.get("RAMET_CLOUD_HYPERVISOR") or "cloud-hypervisor"
