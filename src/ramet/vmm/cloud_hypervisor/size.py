"""How large a machine is, as Cloud Hypervisor tells it (`vm.info`): processors, memory, balloon.

Memory is plugged in by virtio-mem, whose region is beside that which the guest boots with: only so can a
machine have it whose memory is named, and a child's must be.
"""

from dataclasses import dataclass
from typing import Any, Final

from ramet.vmm.port import BalloonUnsupported, SizeOutOfRange, Sizes, VmmFailed

PLUG_ALIGN_BYTES: Final = 128 << 20
"""Of the room for more memory: VIRTIO_MEM_ALIGN_SIZE."""
PLUG_STEP_BYTES: Final = 2 << 20
"""Of what is plugged in: VIRTIO_MEM_DEFAULT_BLOCK_SIZE."""
MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Size:
    """A machine's size. `is_of_file`: its memory is a private mapping of a capture's, as others have."""

    sizes: Sizes
    balloon_bytes: int
    is_of_file: bool

    @classmethod
    def told(cls, info: dict[str, Any]) -> "Size":
        """Read the answer to `vm.info`.

        Raises:
            VmmFailed: it has no machine of ours.
        """
        try:
            config = info["config"]
            cpus, (zone,), balloon = config["cpus"], config["memory"]["zones"], config.get("balloon")
            booted_bytes = zone["size"]
            sizes = Sizes(
                vcpu_count=cpus["boot_vcpus"],  # Those that were last asked for.
                vcpu_count_max=cpus["max_vcpus"],
                memory_bytes=booted_bytes + (zone.get("hotplugged_size") or 0),
                memory_bytes_min=booted_bytes,
                memory_bytes_max=booted_bytes + (zone.get("hotplug_size") or 0),
                memory_step_bytes=PLUG_STEP_BYTES,
            )
            return cls(sizes, balloon["size"] if balloon else 0, zone.get("file") is not None)
        except (KeyError, TypeError, ValueError) as error:
            raise VmmFailed(f"what the VMM tells of its machine makes no sense: {error!r}") from error

    def demand_vcpu_count(self, wanted: int) -> None:
        """Check that it can have so many processors.

        Raises:
            SizeOutOfRange
        """
        most = self.sizes.vcpu_count_max
        if not 1 <= wanted <= most:
            raise SizeOutOfRange(f"it can have 1 to {most} processors, not {wanted}")

    def demand_memory(self, wanted_bytes: int) -> None:
        """Check that it can have so much memory.

        Raises:
            SizeOutOfRange
        """
        least, most = self.sizes.memory_bytes_min, self.sizes.memory_bytes_max
        if not least <= wanted_bytes <= most or (wanted_bytes - least) % PLUG_STEP_BYTES:
            raise SizeOutOfRange(
                f"it can have {least} to {most} bytes of memory in steps of {PLUG_STEP_BYTES},"
                f" not {wanted_bytes}"
            )

    def demand_balloon(self, wanted_bytes: int) -> None:
        """Check that it can give back so much memory.

        Raises:
            SizeOutOfRange, BalloonUnsupported
        """
        if not 0 <= wanted_bytes < self.sizes.memory_bytes_min:
            raise SizeOutOfRange(
                f"it can give back less than {self.sizes.memory_bytes_min} bytes, not {wanted_bytes}"
            )
        if self.is_of_file and wanted_bytes:
            # It would punch holes into the file, and may not: it has opened it to read. Nothing comes back.
            raise BalloonUnsupported(
                "cloud-hypervisor takes no memory back from what was loaded from a capture"
            )
