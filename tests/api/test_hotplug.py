"""Memory that comes while a guest runs: of which hypervisor it can be asked for, and how much."""

import pytest

from ramet.api.asked import check_create, to_spec
from ramet.api.facts import HostFacts, RuntimeFacts, runtime_features
from ramet.api.shown import to_instance
from ramet.core.errors import Invalid, RametError, Unsupported
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceIdentity, InstanceRecord, InstanceSpec, State
from ramet.instance.fleet_types import InstanceView
from ramet.wire_api.instances import CreateInstance
from tests.api.stand_in_images import image

MIB = 1 << 20
ABLE = RuntimeFacts("cloud-hypervisor", True, runtime_features(plugs_memory=True))
FACTS = HostFacts("0.1.0", "qemu", (RuntimeFacts("qemu", True), ABLE))


def asked(hotplug_size: str | None, hypervisor: str | None = ABLE.name, size: str = "1GB") -> InstanceSpec:
    body = CreateInstance("web", "img", size=size, hotplug_size=hotplug_size, hypervisor=hypervisor)
    check_create(body, FACTS)
    return to_spec(body, image("img", ()), FACTS)


@pytest.mark.parametrize(
    ("hotplug_size", "hotplug_mib"),
    [(None, 0), ("0", 0), ("3GB", 3072), ("1", 128), ("129MB", 256), ("31GB", 31 << 10)],
)
def test_it_comes_in_whole_steps(hotplug_size: str | None, hotplug_mib: int) -> None:
    spec = asked(hotplug_size)
    assert spec.hotplug_bytes == hotplug_mib * MIB
    assert spec.memory_bytes_max == (1024 + hotplug_mib) * MIB
    assert spec.for_fork().hotplug_bytes == spec.hotplug_bytes


def test_it_is_shown() -> None:
    def shown(spec: InstanceSpec) -> str | None:
        identity = InstanceIdentity(InstanceId("i"), "web", None, "0" * 32, 0.0)
        return to_instance(InstanceView(InstanceRecord(spec, identity, State.RUNNING)), FACTS).hotplug_size

    assert (shown(asked("3GB")), shown(asked(None))) == ("3GB", None)


@pytest.mark.parametrize(
    ("hotplug_size", "hypervisor", "kind"),
    [
        ("1GB", None, Unsupported),
        ("1GB", "qemu", Unsupported),
        ("32GB", ABLE.name, Invalid),
        ("9999999GB", "qemu", Invalid),
        ("much", ABLE.name, Invalid),
    ],
)
def test_what_cannot_be_is_refused(hotplug_size: str, hypervisor: str | None, kind: type[RametError]) -> None:
    with pytest.raises(kind) as refused:
        asked(hotplug_size, hypervisor)
    if kind is Unsupported:
        assert refused.value.fields["field"] == "hotplug_size"
        assert ABLE.name in refused.value.remedy
