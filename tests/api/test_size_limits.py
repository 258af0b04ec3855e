"""How large an instance may be at most is the host's to say."""

from dataclasses import replace
from typing import Any

import pytest

from ramet.api.asked import check_create, to_overlay_bytes, to_spec
from ramet.api.facts import SizeLimits
from ramet.core.errors import Invalid
from ramet.core.spec import InstanceSpec
from ramet.wire_api.instances import CreateInstance
from tests.api.stand_in import FACTS
from tests.api.stand_in_images import image

SMALL = replace(FACTS, limits=SizeLimits(vcpu_count=1, memory_bytes=512 << 20, overlay_bytes=1 << 30))


def asked(**fields: Any) -> InstanceSpec:
    body = CreateInstance(name="web", image="img", cmd=("run",), **fields)
    check_create(body, SMALL)
    return to_spec(body, image("img", ()), SMALL)


def test_what_is_not_said_is_no_more_than_may_be() -> None:
    spec = asked()
    assert (spec.vcpu_count, spec.memory_bytes, spec.overlay_bytes) == (1, 512 << 20, 1 << 30)


@pytest.mark.parametrize(
    ("field", "value", "most"),
    [("vcpus", 2, "from 1 to 1"), ("size", "1GB", "to 512MB"), ("overlay_size", "2GB", "to 1GB")],
)
def test_more_than_may_be_is_refused_with_what_may(field: str, value: object, most: str) -> None:
    with pytest.raises(Invalid, match=most) as refused:
        asked(**{field: value})
    assert refused.value.fields["field"] == field


def test_memory_that_is_plugged_in_counts() -> None:
    with pytest.raises(Invalid, match="together"):
        asked(size="512MB", hotplug_size="128MB")


def test_overlays_of_volumes_count_one_by_one() -> None:
    assert to_overlay_bytes("volumes.overlay_size", "1GB", SMALL) == 1 << 30
    with pytest.raises(Invalid, match="to 1GB"):
        to_overlay_bytes("volumes.overlay_size", "2GB", SMALL)
