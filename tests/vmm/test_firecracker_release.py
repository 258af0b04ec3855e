"""What a version says it is, and can do."""

import os
from pathlib import Path

import pytest

from ramet.core.errors import Broken
from ramet.vmm.firecracker.driver import PROGRAM_VARIABLE, FirecrackerDriver
from ramet.vmm.firecracker.features import CLOCK_REALTIME, NETWORK_OVERRIDES, TRACK_DIRTY_PAGES, Release
from tests.vmm.fake_firecracker.program import VERSION_VARIABLE
from tests.vmm.firecracker_bench import PROGRAM


@pytest.mark.parametrize(
    ("told", "text"),
    [
        ("Firecracker v1.10.1\n\nSupported snapshot data format versions: v4.0.0\n", "1.10.1"),
        ("Firecracker v1.16.1\n\n", "1.16.1"),
        ("Firecracker v2.0.0-dev\n", "2.0.0-dev"),
    ],
)
def test_a_version_is_read_from_what_the_program_prints(told: str, text: str) -> None:
    assert Release.told(told).text == text


@pytest.mark.parametrize(
    "told", ["", "Cloud Hypervisor v51.1\n", "Firecracker v1.9.1\n", "Firecracker v0.25.2\n"]
)
def test_what_is_no_version_or_too_old_is_refused(told: str) -> None:
    with pytest.raises(Broken):
        Release.told(told)


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("1.10.1", []),
        ("1.12.0", [NETWORK_OVERRIDES]),
        ("1.13.2", [NETWORK_OVERRIDES, TRACK_DIRTY_PAGES]),
        ("1.16.0", [NETWORK_OVERRIDES, TRACK_DIRTY_PAGES, CLOCK_REALTIME]),
        ("2.0.0", [NETWORK_OVERRIDES, TRACK_DIRTY_PAGES, CLOCK_REALTIME]),
    ],
)
def test_a_version_has_what_came_with_it_or_before(text: str, features: list[object]) -> None:
    known = (NETWORK_OVERRIDES, TRACK_DIRTY_PAGES, CLOCK_REALTIME)
    assert [feature for feature in known if Release(text).has(feature)] == features


def test_the_driver_asks_the_program(tmp_path: Path) -> None:
    environment = os.environ | {PROGRAM_VARIABLE: str(PROGRAM), VERSION_VARIABLE: "1.13.0"}
    assert FirecrackerDriver.open(tmp_path, environment=environment).version == "1.13.0"


def test_a_host_without_it_is_told_how_to_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(PROGRAM_VARIABLE, raising=False)
    with pytest.raises(Broken, match="not installed"):
        FirecrackerDriver.open(tmp_path)
    monkeypatch.setenv(PROGRAM_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(Broken, match="does not run"):
        FirecrackerDriver.open(tmp_path)
