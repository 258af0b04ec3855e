"""What of the official client works here: the declarations that docs/compatibility.md is written from.

Every method of the client stands here, and the tests hold each to what it says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True)
class Method:
    """What becomes of one method.

    Attributes:
        refuses: parameters that are answered with 501 and their name, each with a value that is. A dot leads
            to a member of one.
        missing: what else there is to say of what does not work.
        is_later: the whole method is answered with 501 and its name.
    """

    refuses: Mapping[str, Any] = field(default_factory=dict)
    missing: str = ""
    is_later: bool = False

    @property
    def status(self) -> str:
        if self.is_later:
            return "later"
        return "partly" if self.refuses or self.missing else "works"


WORKS: Final = Method()
LATER: Final = Method(is_later=True)

METHODS: Final[Mapping[str, Method]] = {
    "health.check": WORKS,
    "capabilities.get": WORKS,
    "resources.get": WORKS,
    "resources.reclaim_memory": WORKS,
    "images.create": WORKS,
    "images.list": WORKS,
    "images.get": WORKS,
    "images.delete": WORKS,
    "images.tag": WORKS,
    "instances.create": Method(
        refuses={
            "credentials": {
                "KEY": {"source": {"env": "KEY"}, "inject": [{"as": {"header": "A", "format": "${value}"}}]}
            },
            "devices": ["gpu0"],
            "gpu": {"profile": "L40S-2Q"},
            "hotplug_size": "1GB",  # Of QEMU; Cloud Hypervisor takes it.
            "network.egress": {"enabled": True},
        },
        missing="`hotplug_size` is taken by Cloud Hypervisor",
    ),
    "instances.list": WORKS,
    "instances.get": WORKS,
    "instances.update": Method(
        refuses={
            "env": {"KEY": "value"},
        },
        missing="the client has `env` change the values of `credentials`, and of nothing else",
    ),
    "instances.delete": WORKS,
    "instances.start": WORKS,
    "instances.stop": WORKS,
    "instances.standby": WORKS,
    "instances.restore": WORKS,
    "instances.fork": WORKS,
    "instances.wait": WORKS,
    "instances.logs": WORKS,
    "instances.stat": WORKS,
    "instances.stats": WORKS,
    "instances.auto_standby.hold": WORKS,
    "instances.auto_standby.status": WORKS,
    "instances.snapshots.create": WORKS,
    "instances.snapshots.restore": WORKS,
    "instances.snapshot_schedule.delete": WORKS,
    "instances.snapshot_schedule.get": WORKS,
    "instances.snapshot_schedule.update": WORKS,
    "instances.volumes.attach": WORKS,
    "instances.volumes.detach": WORKS,
    "snapshots.list": WORKS,
    "snapshots.get": WORKS,
    "snapshots.delete": WORKS,
    "snapshots.fork": WORKS,
    "volumes.create": WORKS,
    "volumes.create_from_archive": WORKS,
    "volumes.delete": WORKS,
    "volumes.get": WORKS,
    "volumes.list": WORKS,
    "devices.create": LATER,
    "devices.delete": LATER,
    "devices.list": LATER,
    "devices.list_available": LATER,
    "devices.retrieve": LATER,
    "ingresses.create": LATER,
    "ingresses.delete": LATER,
    "ingresses.get": LATER,
    "ingresses.list": LATER,
    "builds.cancel": LATER,
    "builds.create": LATER,
    "builds.events": LATER,
    "builds.get": LATER,
    "builds.list": LATER,
    "builders.create": LATER,
    "builders.delete": LATER,
    "builders.get": LATER,
    "builders.list": LATER,
    "builders.prune": LATER,
    "pushes.create": LATER,
    "pushes.get": LATER,
    "pushes.list": LATER,
    "lib.exec": WORKS,
    "lib.cp_to_instance": WORKS,
    "lib.cp_from_instance": WORKS,
}

UNTOLD: Final[Mapping[str, frozenset[str]]] = {
    "Instance": frozenset(
        {
            "gpu",
        }
    ),
    "Resources": frozenset({"gpu"}),
}
"""Fields of the client's models that no answer has yet, by the model's name."""
