"""Kits: made once, named by their inputs, whole or absent; and made of the real kernel package."""

import errno
import os
from pathlib import Path

import pytest

from ramet.boot import (
    BootKit,
    KernelNotFound,
    KernelSource,
    KernelToolFailed,
    KernelUnusable,
    KitDamaged,
    KitInputMissing,
    KitUnwritable,
    ProgramNotBuilt,
    find_installed_kernel,
    native_program,
    prepare_kit,
)
from ramet.boot.kernel import GUEST_MODULES
from tests.boot.archive import read_archive

ROOT = Path(__file__).parents[2]
PACKAGES = sorted((ROOT / ".cache" / "kernel").glob("linux-image-*.deb"))
RELEASE = "6.1.0-9-cloud-amd64"


def install_kernel(root: Path, release: str = RELEASE) -> KernelSource:
    """Lay a made-up kernel with all modules we want into `root`, as a package would."""
    modules = root / "lib" / "modules" / release
    modules.mkdir(parents=True)
    for name in GUEST_MODULES:
        (modules / f"{name}.ko").write_bytes(b"\x7fELF" + name.encode())
    (modules / "modules.dep").write_text("".join(f"{name}.ko:\n" for name in GUEST_MODULES))
    (modules / "modules.builtin").write_text("")
    vmlinuz = root / "boot" / f"vmlinuz-{release}"
    vmlinuz.parent.mkdir(exist_ok=True)
    vmlinuz.write_bytes(b"\x7fELF" + release.encode())
    return KernelSource(release, vmlinuz, modules)


@pytest.fixture
def kernel(tmp_path: Path) -> KernelSource:
    return install_kernel(tmp_path / "host")


@pytest.fixture
def guest(tmp_path: Path) -> Path:
    path = tmp_path / "ramet-guest"
    path.write_bytes(b"\x7fELF guest")
    return path


def test_a_kit_holds_kernel_guest_and_modules(tmp_path: Path, kernel: KernelSource, guest: Path) -> None:
    kit = prepare_kit(tmp_path / "cache", guest_program=guest, kernel=kernel)
    assert kit.kernel.read_bytes() == kernel.vmlinuz.read_bytes()
    assert kit.kernel_release == RELEASE
    found = read_archive(kit.initramfs.read_bytes())
    assert found["init"].content == guest.read_bytes()
    assert found["modules/order"].content.decode().split() == [f"{name}.ko" for name in GUEST_MODULES]


def inode_numbers(kit: BootKit) -> tuple[int, int]:
    return kit.kernel.stat().st_ino, kit.initramfs.stat().st_ino


def test_a_kit_that_is_there_is_not_made_again(tmp_path: Path, kernel: KernelSource, guest: Path) -> None:
    first = prepare_kit(tmp_path / "cache", guest_program=guest, kernel=kernel)
    before = inode_numbers(first)
    assert prepare_kit(tmp_path / "cache", guest_program=guest, kernel=kernel) == first
    assert inode_numbers(first) == before


def test_a_new_guest_program_makes_a_kit_beside_the_old(
    tmp_path: Path, kernel: KernelSource, guest: Path
) -> None:
    first = prepare_kit(tmp_path / "cache", guest_program=guest, kernel=kernel)
    content = first.initramfs.read_bytes()
    guest.write_bytes(b"\x7fELF newer guest")
    second = prepare_kit(tmp_path / "cache", guest_program=guest, kernel=kernel)
    assert second.digest != first.digest
    assert first.initramfs.read_bytes() == content


def test_a_kernel_update_makes_a_kit_of_its_own(tmp_path: Path, kernel: KernelSource, guest: Path) -> None:
    first = prepare_kit(tmp_path / "cache", guest_program=guest, kernel=kernel)
    kernel.vmlinuz.write_bytes(b"\x7fELF the same release, rebuilt")
    second = prepare_kit(tmp_path / "cache", guest_program=guest, kernel=kernel)
    assert second.kernel.read_bytes() == b"\x7fELF the same release, rebuilt"
    assert second.digest != first.digest


def test_a_failure_leaves_nothing_behind(tmp_path: Path, kernel: KernelSource, guest: Path) -> None:
    (kernel.modules / "overlay.ko").write_bytes(b"garbage")
    with pytest.raises(KernelUnusable, match="overlay"):
        prepare_kit(tmp_path / "cache", guest_program=guest, kernel=kernel)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_kit_that_lost_bytes_is_reported_with_the_remedy(
    tmp_path: Path, kernel: KernelSource, guest: Path
) -> None:
    kit = prepare_kit(tmp_path / "cache", guest_program=guest, kernel=kernel)
    os.truncate(kit.initramfs, 100)
    with pytest.raises(KitDamaged, match="remove"):
        prepare_kit(tmp_path / "cache", guest_program=guest, kernel=kernel)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"later": 1}', "[" * 100_000])
def test_a_kit_whose_manifest_is_damaged_is_reported_with_the_remedy(
    tmp_path: Path, kernel: KernelSource, guest: Path, text: str
) -> None:
    kit = prepare_kit(tmp_path / "cache", guest_program=guest, kernel=kernel)
    (kit.kernel.parent / "kit.json").write_text(text)
    with pytest.raises(KitDamaged, match="remove"):
        prepare_kit(tmp_path / "cache", guest_program=guest, kernel=kernel)


def test_a_place_that_takes_no_kit_is_named(tmp_path: Path, kernel: KernelSource, guest: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KitUnwritable, match="file/cache") as caught:
        prepare_kit(tmp_path / "file/cache", guest_program=guest, kernel=kernel)
    assert "kits_dir" in caught.value.remedy


def test_a_disk_that_is_full_is_told_and_nothing_is_left(
    tmp_path: Path, kernel: KernelSource, guest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(KitUnwritable, match="No space left"):
        prepare_kit(tmp_path / "cache", guest_program=guest, kernel=kernel)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_missing_input_is_named(tmp_path: Path, kernel: KernelSource, guest: Path) -> None:
    with pytest.raises(KitInputMissing, match="absent"):
        prepare_kit(tmp_path / "cache", guest_program=tmp_path / "absent", kernel=kernel)
    with pytest.raises(KitInputMissing, match=r"absent\.deb"):
        prepare_kit(tmp_path / "cache", guest_program=guest, kernel_package=tmp_path / "absent.deb")


def test_a_package_that_is_none_is_refused_in_the_words_of_dpkg(tmp_path: Path, guest: Path) -> None:
    package = tmp_path / "linux-image.deb"
    package.write_bytes(b"this is no archive")
    with pytest.raises(KernelToolFailed, match="dpkg-deb"):
        prepare_kit(tmp_path / "cache", guest_program=guest, kernel_package=package)
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_newest_installed_kernel_is_taken_by_number_not_by_letter(tmp_path: Path) -> None:
    for release in (RELEASE, "6.1.0-10-cloud-amd64"):
        install_kernel(tmp_path, release)
    (tmp_path / "boot" / "vmlinuz-6.1.0-11-cloud-amd64").touch()  # Left behind; its modules are gone.
    assert find_installed_kernel(tmp_path).release == "6.1.0-10-cloud-amd64"


def test_a_host_without_a_kernel_hears_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(KernelNotFound, match="apt-get install linux-image-cloud-amd64"):
        find_installed_kernel(tmp_path)


def test_a_program_that_was_not_built_is_named() -> None:
    with pytest.raises(ProgramNotBuilt, match="ramet-nothing"):
        native_program("ramet-nothing")


@pytest.mark.skipif(not PACKAGES, reason="no kernel package in the cache; ./run setup downloads it")
def test_the_distributions_own_package_makes_a_kit(tmp_path: Path, guest: Path) -> None:
    kit = prepare_kit(tmp_path, guest_program=guest, kernel_package=PACKAGES[-1])
    assert kit.kernel_release.endswith("-cloud-amd64")
    assert f"Linux version {kit.kernel_release} ".encode() in kit.kernel.read_bytes()
    found = read_archive(kit.initramfs.read_bytes())
    order = found["modules/order"].content.decode().split()
    assert {"modules/" + name for name in order} == {n for n in found if n.endswith(".ko")}
    for earlier, later in [
        ("virtio_ring.ko", "virtio.ko"),
        ("virtio.ko", "virtio_pci.ko"),
        ("net_failover.ko", "virtio_net.ko"),
        ("inet_diag.ko", "tcp_diag.ko"),
    ]:
        assert order.index(earlier) < order.index(later)
    # What a module needs, it says itself, in its .modinfo section; all of it must stand before it.
    for position, name in enumerate(order):
        _, _, rest = found[f"modules/{name}"].content.partition(b"\0depends=")
        needed = rest.partition(b"\0")[0].decode()
        for dependency in filter(None, needed.split(",")):
            assert f"{dependency}.ko" in order[:position]
