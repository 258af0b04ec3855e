"""What the API takes: members of each request by version, and the refusal of everything else.

A real one ignores members that it does not know; this one refuses them, so that none is sent in vain.

Facts: cloud-hypervisor.yaml, vmm/src/vm_config.rs and vmm/src/api/http, 51 to 53.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

from tests.vmm.fake_firecracker import api as shared
from tests.vmm.fake_firecracker.api import Body, Field, Version

PREFIX: Final = "/api/v1/"
BODY_BYTES_MAX: Final = 51_200


class Refused(Exception):
    """The request is answered with `status` and this reason; `is_fatal`: then the process ends."""

    def __init__(self, message: str, status: int = 500, *, is_fatal: bool = False) -> None:
        super().__init__(message)
        self.status, self.is_fatal = status, is_fatal


@dataclass(frozen=True)
class Endpoint:
    """One request. `body`: None where there must be none."""

    method: str
    body: Body | None = None


_CPUS: Final[Body] = {
    "boot_vcpus": Field(int, True),
    "max_vcpus": Field(int, True),
    "kvm_hyperv": Field(bool),
    "max_phys_bits": Field(int),
    "nested": Field(bool),
    "core_scheduling": Field(("Vm", "Vcpu", "Off"), since=(52, 0)),
}
_ZONE: Final[Body] = {
    "id": Field(str, True),
    "size": Field(int, True),
    "file": Field(str),
    "shared": Field(bool),
    "hugepages": Field(bool),
    "hugepage_size": Field(int),
    "host_numa_node": Field(int),
    "hotplug_size": Field(int),
    "hotplugged_size": Field(int),
    "prefault": Field(bool),
    "mergeable": Field(bool),
    "reserve": Field(bool, since=(53, 0)),
}
_MEMORY: Final[Body] = {
    "size": Field(int, True),
    "mergeable": Field(bool),
    "hotplug_method": Field(("Acpi", "VirtioMem")),
    "hotplug_size": Field(int),
    "hotplugged_size": Field(int),
    "shared": Field(bool),
    "hugepages": Field(bool),
    "hugepage_size": Field(int),
    "prefault": Field(bool),
    "thp": Field(bool),
    "zones": Field([_ZONE]),
    "reserve": Field(bool, since=(53, 0)),
}
_BUCKET: Final[Body] = {
    "size": Field(int, True),
    "one_time_burst": Field(int),
    "refill_time": Field(int, True),
}
_LIMITER: Final[Body] = {"bandwidth": Field(_BUCKET), "ops": Field(_BUCKET)}
_DISK: Final[Body] = {
    "id": Field(str),
    "path": Field(str),
    "readonly": Field(bool),
    "direct": Field(bool),
    "iommu": Field(bool),
    "num_queues": Field(int),
    "queue_size": Field(int),
    "serial": Field(str),
    "pci_segment": Field(int),
    "pci_device_id": Field(int, since=(52, 0)),
    "backing_files": Field(bool),
    "sparse": Field(bool),
    "rate_limiter_config": Field(_LIMITER),
    "image_type": Field(("FixedVhd", "Qcow2", "Raw", "Vhdx", "Unknown")),
    "lock_granularity": Field(("ByteRange", "Full"), since=(52, 0)),
}
NET: Final[Body] = {
    "id": Field(str),
    "tap": Field(str),
    "ip": Field(str),
    "mask": Field(str),
    "mac": Field(str),
    "host_mac": Field(str),
    "mtu": Field(int),
    "iommu": Field(bool),
    "num_queues": Field(int),
    "queue_size": Field(int),
    "pci_segment": Field(int),
    "pci_device_id": Field(int, since=(52, 0)),
    "rate_limiter_config": Field(_LIMITER),
    "offload_tso": Field(bool),
    "offload_ufo": Field(bool),
    "offload_csum": Field(bool),
}
_CONSOLE: Final[Body] = {
    "mode": Field(("Off", "Pty", "Tty", "File", "Socket", "Null"), True),
    "file": Field(str),
    "socket": Field(str),
}
CONFIG: Final[Body] = {
    "cpus": Field(_CPUS),
    "memory": Field(_MEMORY),
    "payload": Field(
        {
            "firmware": Field(str),
            "kernel": Field(str),
            "cmdline": Field(str),
            "initramfs": Field(str),
        }
    ),
    "disks": Field([_DISK]),
    "net": Field([NET]),
    "rng": Field({"src": Field(str, True), "iommu": Field(bool)}),
    "balloon": Field(
        {"size": Field(int, True), "deflate_on_oom": Field(bool), "free_page_reporting": Field(bool)}
    ),
    "serial": Field(_CONSOLE),
    "console": Field(_CONSOLE),
    "vsock": Field({"cid": Field(int, True), "socket": Field(str, True), "id": Field(str)}),
    "iommu": Field(bool),
    "watchdog": Field(bool),
    "pvpanic": Field(bool),
    "landlock_enable": Field(bool),
}
_RESTORE: Final[Body] = {
    "source_url": Field(str, True),
    "prefault": Field(bool),
    "net_fds": Field([{"id": Field(str, True), "num_fds": Field(int)}]),
    "memory_restore_mode": Field(("Copy", "OnDemand"), since=(52, 0)),
    "resume": Field(bool, since=(52, 0)),
}
ENDPOINTS: Final[dict[str, Endpoint]] = {
    "vmm.ping": Endpoint("GET"),
    "vm.info": Endpoint("GET"),
    "vmm.shutdown": Endpoint("PUT"),
    "vm.create": Endpoint("PUT", CONFIG),
    "vm.add-net": Endpoint("PUT", NET),
    "vm.boot": Endpoint("PUT"),
    "vm.pause": Endpoint("PUT"),
    "vm.resume": Endpoint("PUT"),
    "vm.shutdown": Endpoint("PUT"),
    "vm.delete": Endpoint("PUT"),
    "vm.snapshot": Endpoint("PUT", {"destination_url": Field(str, True)}),
    "vm.resize": Endpoint(
        "PUT", {"desired_vcpus": Field(int), "desired_ram": Field(int), "desired_balloon": Field(int)}
    ),
    "vm.resize-zone": Endpoint("PUT", {"id": Field(str, True), "desired_ram": Field(int, True)}),
    "vm.restore": Endpoint("PUT", _RESTORE),
}


def parse(version: Version, method: str, path: str, raw: bytes) -> tuple[str, dict[str, Any]]:
    """Return which action is meant, and its checked body.

    Raises:
        Refused: it is not one, or not with these members.
    """
    action = path.removeprefix(PREFIX)
    endpoint = ENDPOINTS.get(action) if path.startswith(PREFIX) else None
    if endpoint is None:
        raise Refused("Not Found", 404)
    if endpoint.method != method or (endpoint.body is None) == bool(raw) or len(raw) > BODY_BYTES_MAX:
        raise Refused("Bad Request", 400)
    if endpoint.body is None:
        return action, {}
    try:
        body = json.loads(raw)
    except ValueError as error:
        raise Refused(f"Failed to deserialize JSON: {error}", 400) from error
    demand_members(version, endpoint.body, body)
    return action, body


def demand_members(version: Version, schema: Body, body: Any) -> None:
    """Check what a request has, or a file.

    Raises:
        Refused: it has other members than it may.
    """
    try:
        shared.check(version, schema, body)
    except shared.Refused as error:
        raise Refused(f"Failed to deserialize JSON: {error}", 400) from error
