"""Who can load a capture."""

from dataclasses import replace

import pytest

from ramet.vmm.port import CaptureFormat

TAKEN = CaptureFormat("qemu", "7.2", 3, "kvm", "GenuineIntel 6 143 8 5f9e3c1a")


@pytest.mark.parametrize(
    "other",
    [
        replace(TAKEN, version="8.0"),
        replace(TAKEN, device_model=4),
        replace(TAKEN, accelerator="tcg", processor=""),
        replace(TAKEN, processor="AuthenticAMD 25 1 1 0badcafe"),
    ],
)
def test_a_capture_is_loaded_only_by_a_vmm_on_a_processor_like_those_it_was_taken_by(
    other: CaptureFormat,
) -> None:
    assert TAKEN.is_loaded_by(replace(TAKEN))
    assert not TAKEN.is_loaded_by(other)
    assert not other.is_loaded_by(TAKEN)


def test_one_that_tells_no_processor_is_loaded_on_any() -> None:
    old = replace(TAKEN, processor="")
    assert old.is_loaded_by(TAKEN)
    assert not old.is_loaded_by(replace(TAKEN, version="8.0"))
