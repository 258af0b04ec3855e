"""What disks let through: of which hypervisor it can be asked for, how much, and how it is shown."""

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

ABLE = RuntimeFacts("qemu", True, runtime_features(limits_disks=True))
FACTS = HostFacts("0.1.0", ABLE.name, (ABLE, RuntimeFacts("vz", True)))


def asked(disk_io_bps: str | None, hypervisor: str | None = None) -> InstanceSpec:
    body = CreateInstance("web", "img", disk_io_bps=disk_io_bps, hypervisor=hypervisor)
    check_create(body, FACTS)
    return to_spec(body, image("img", ()), FACTS)


def shown(spec: InstanceSpec) -> str | None:
    identity = InstanceIdentity(InstanceId("i"), "web", None, "0" * 32, 0.0)
    return to_instance(InstanceView(InstanceRecord(spec, identity, State.RUNNING)), FACTS).disk_io_bps


@pytest.mark.parametrize(
    ("disk_io_bps", "rate_bytes_per_s", "told"),
    [
        (None, None, None),
        ("", None, None),
        ("100MB/s", 100_000_000, "100MB/s"),
        ("1MB/s", 1_000_000, "1MB/s"),
        ("1MiB/s", 1 << 20, "1048576B/s"),
        ("1Gbps", 125_000_000, "125MB/s"),
        ("125GB/s", 125_000_000_000, "125GB/s"),
    ],
)
def test_a_rate_is_kept_shown_and_copied(
    disk_io_bps: str | None, rate_bytes_per_s: int | None, told: str | None
) -> None:
    spec = asked(disk_io_bps)
    assert spec.disk_io_bytes_per_s == rate_bytes_per_s
    assert spec.for_fork().disk_io_bytes_per_s == rate_bytes_per_s
    assert shown(spec) == told
    if told is not None:
        assert asked(told) == spec  # What is shown can be asked for.


@pytest.mark.parametrize(
    ("disk_io_bps", "hypervisor", "kind"),
    [
        ("100MB/s", "vz", Unsupported),
        ("999KB/s", None, Invalid),
        ("0MB/s", None, Invalid),
        ("126GB/s", None, Invalid),
        ("100MB", None, Invalid),
        ("fast", "vz", Invalid),
    ],
)
def test_what_cannot_be_is_refused(disk_io_bps: str, hypervisor: str | None, kind: type[RametError]) -> None:
    with pytest.raises(kind) as refused:
        asked(disk_io_bps, hypervisor)
    if kind is Unsupported:
        assert refused.value.fields["field"] == "disk_io_bps"
        assert refused.value.remedy == "use hypervisor qemu"
