"""Which hypervisors a daemon has is found out on the host, and that of the settings must be among them."""

import os
import signal
from pathlib import Path
from typing import Literal

import anyio
import pytest

from ramet.core.errors import Broken
from ramet.daemon.config import HypervisorSettings, Settings
from ramet.daemon.wiring import _make_pager, _open_drivers
from ramet.linux import kvm
from ramet.pager import PagerClient
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


def test_a_host_without_any_is_told_what_to_install(
    folder: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("RAMET_FIRECRACKER", "RAMET_CLOUD_HYPERVISOR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(Broken, match="qemu-system-x86_64"):
        _open_drivers(Settings(), folder)


def install_firecracker(place: Path, version: str) -> Path:
    program = place / "firecracker-of-ours"
    program.write_text(f"#!/bin/sh\necho Firecracker v{version}\n")
    program.chmod(0o755)
    return program


@pytest.fixture
def firecracker(folder: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    install_qemu(tmp_path / "bin", monkeypatch, "pc-q35-7.2")
    monkeypatch.delenv("RAMET_FIRECRACKER", raising=False)
    return install_firecracker(tmp_path, "1.16.1")


def test_firecracker_is_a_hypervisor_where_it_is_installed_and_kvm_runs_guests(
    folder: DataFolder, firecracker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = HypervisorSettings(firecracker_binary_path=firecracker, default="firecracker")
    monkeypatch.setattr(kvm, "runs_stock_kernels", lambda: True)
    drivers = _open_drivers(Settings(hypervisor=named), folder)
    assert drivers.keys() == {"qemu", "firecracker"}
    driver = drivers["firecracker"]
    assert (driver.version, driver.disk_form, driver.opens_taps) == ("1.16.1", "raw", True)
    assert _open_drivers(Settings(), folder).keys() == {"qemu"}  # Nobody says where it is.


@pytest.mark.anyio
@pytest.mark.parametrize("backend", ["file", "uffd"])
async def test_firecracker_takes_packed_memory_where_the_pager_is_wanted_and_there(
    backend: Literal["file", "uffd"], folder: DataFolder, firecracker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvm, "runs_stock_kernels", lambda: True)
    settings = Settings(
        hypervisor=HypervisorSettings(
            firecracker_binary_path=firecracker,
            firecracker_snapshot_memory_backend=backend,
            firecracker_uffd_cache_max_bytes=64 << 20,
        )
    )
    pager = _make_pager(settings, folder, {})
    driver = _open_drivers(settings, folder, pager)["firecracker"]
    assert not driver.takes_packed
    await pager.start()
    async with anyio.create_task_group() as group:
        group.start_soon(pager.run)
        assert driver.takes_packed == (backend == "uffd")
        (own,) = folder.pagers.iterdir()
        client = PagerClient(own / "control.sock")
        assert (await client.statistics()).cache.size_bytes_max == 64 << 20
        group.cancel_scope.cancel()
    os.kill((await client.health()).pid, signal.SIGKILL)


def test_without_kvm_there_is_no_firecracker(
    folder: DataFolder, firecracker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvm, "runs_stock_kernels", lambda: False)
    settings = Settings(hypervisor=HypervisorSettings(firecracker_binary_path=firecracker))
    assert _open_drivers(settings, folder).keys() == {"qemu"}
    settings.hypervisor.default = "firecracker"
    with pytest.raises(Broken, match="/dev/kvm"):
        _open_drivers(settings, folder)


def test_cloud_hypervisor_is_one_where_it_is_installed_and_kvm_runs_guests(
    folder: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_qemu(tmp_path / "bin", monkeypatch, "pc-q35-7.2")
    program = tmp_path / "ours"
    program.write_text("#!/bin/sh\necho cloud-hypervisor v53.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("RAMET_CLOUD_HYPERVISOR", str(program))
    monkeypatch.setattr(kvm, "runs_stock_kernels", lambda: True)
    settings = Settings(hypervisor=HypervisorSettings(default="cloud-hypervisor"))
    driver = _open_drivers(settings, folder)["cloud-hypervisor"]
    assert (driver.version, driver.disk_form, driver.opens_taps) == ("53.0", "raw", False)
    monkeypatch.setattr(kvm, "runs_stock_kernels", lambda: False)
    with pytest.raises(Broken, match="/dev/kvm"):
        _open_drivers(settings, folder)


def test_a_firecracker_that_is_too_old_is_refused_with_its_version(
    folder: DataFolder, firecracker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kvm, "runs_stock_kernels", lambda: True)
    old = install_firecracker(tmp_path, "1.9.0")
    settings = Settings(hypervisor=HypervisorSettings(firecracker_binary_path=old, default="firecracker"))
    with pytest.raises(Broken, match=r"1\.9"):
        _open_drivers(settings, folder)
