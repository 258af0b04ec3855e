"""Which hypervisors a daemon has is found out on the host, and that of the settings must be among them."""

from pathlib import Path

import pytest

from ramet.core.errors import Broken
from ramet.daemon.config import HypervisorSettings, Settings
from ramet.daemon.wiring import _open_drivers
from ramet.store.paths import DataFolder

QEMU = """#!/bin/sh
case "$1" in
  --version) echo "QEMU emulator version 7.2.22" ;;
  *) printf '{machines}' ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "data")


def install_qemu(place: Path, monkeypatch: pytest.MonkeyPatch, *machines: str) -> None:
    place.mkdir()
    program = place / "qemu-system-x86_64"
    program.write_text(QEMU.format(machines="".join(f"{name}     a board\\n" for name in machines)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("machines", "names"),
    [
        (("pc-q35-7.2", "microvm"), {"qemu", "qemu-microvm"}),
        (("pc-q35-7.2", "microvm-like"), {"qemu"}),
    ],
)
def test_each_board_that_the_installed_qemu_has_is_a_hypervisor(
    folder: DataFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    machines: tuple[str, ...],
    names: set[str],
) -> None:
    install_qemu(tmp_path / "bin", monkeypatch, *machines)
    drivers = _open_drivers(Settings(), folder)
    assert drivers.keys() == names
    assert {driver.version for driver in drivers.values()} == {"7.2.22"}


def test_a_default_hypervisor_that_is_not_there_keeps_the_daemon_from_starting(
    folder: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_qemu(tmp_path / "bin", monkeypatch, "pc-q35-7.2")
    settings = Settings(hypervisor=HypervisorSettings(default="qemu-microvm"))
    with pytest.raises(Broken, match="no machine type microvm"):
        _open_drivers(settings, folder)
