"""Records to be admitted."""

from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceIdentity, InstanceRecord, InstanceSpec, Runtime, State

MEMORY_BYTES = 256 << 20
OVERLAY_BYTES = 1 << 30
RUNTIME = Runtime(1, 1, "boot")


def record(
    name: str,
    state: State = State.RUNNING,
    *,
    cpu_count: int = 1,
    memory_bytes: int = MEMORY_BYTES,
    overlay_bytes: int = OVERLAY_BYTES,
    runtime: Runtime | None = None,
    is_deleting: bool = False,
) -> InstanceRecord:
    """Return the record of an instance; `name` is its id, too."""
    spec = InstanceSpec("box:1", "sha256:0", "qemu", cpu_count, memory_bytes, overlay_bytes)
    identity = InstanceIdentity(InstanceId(name), name, None, "0" * 32, 0.0)
    return InstanceRecord(spec, identity, state, runtime=runtime, is_deleting=is_deleting)
