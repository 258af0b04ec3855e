"""A kit is what a guest boots from: one kernel and one initramfs, named by what they were made of.

The folder of a kit is named by the digest of its inputs and never changes once it is there. A new guest
program or kernel makes a new kit beside the old one, so that a snapshot, which remembers paths,
keeps the kernel and initramfs that it was booted with. Preparing a kit that exists costs the digest of the
guest program and one stat per input of the kernel.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from ramet.boot.initramfs import build_initramfs
from ramet.boot.kernel import (
    GUEST_MODULES,
    KernelSource,
    modules_in_order,
    read_module,
    unpack_package,
    unpack_vmlinux,
)
from ramet.boot.locate import find_installed_kernel
from ramet.core.errors import Broken, NotFound

KIT_FORMAT: Final = 1  # Counted up when the same inputs would make another kit.

_KERNEL_FILE: Final = "vmlinux"
_INITRAMFS_FILE: Final = "initramfs"
_MANIFEST_FILE: Final = "kit.json"
_KIT_PREFIX: Final = "kit-"
_DIGEST_LENGTH: Final = 16  # hexadecimal digits of a folder's name


class KitDamaged(Broken):
    """A kit's folder is there, but a file in it is missing or was changed in length."""

    code = "boot_kit_damaged"


class KitInputMissing(NotFound):
    """A file that a kit is to be made of is not there or cannot be read."""

    code = "boot_kit_input_missing"
    remedy_default = "name a kernel package that is there: kernel_package"


class KitUnwritable(Broken):
    """A kit cannot be written: the disk is full, or failing."""

    code = "boot_kit_unwritable"


@dataclass(frozen=True)
class BootKit:
    """A kernel and initramfs that boot a guest of ours.

    Args:
        kernel: uncompressed ELF vmlinux.
        initramfs: newc cpio archive with the guest program and the modules of `kernel_release`.
        kernel_release: e.g. "6.1.0-56-cloud-amd64".
        digest: names the kit's content, 16 hexadecimal digits.
    """

    kernel: Path
    initramfs: Path
    kernel_release: str
    digest: str


@dataclass(frozen=True)
class _Manifest:
    format: int
    kernel_release: str
    kernel_bytes: int
    initramfs_bytes: int
    modules: list[str]


def prepare_kit(
    cache_folder: Path,
    *,
    guest_program: Path,
    kernel_package: Path | None = None,
    kernel: KernelSource | None = None,
) -> BootKit:
    """Return the kit of `guest_program` and a kernel, making it under `cache_folder` if it is not there.

    The kernel is that of `kernel_package` (a .deb), or `kernel`, or else the newest cloud kernel installed.
    Blocks: up to a few seconds the first time, milliseconds afterwards. Two processes that make
    the same kit at once both succeed with the same folder.

    Raises:
        KernelNotFound: none was named and none is installed.
        KitInputMissing: the guest program or a kernel file cannot be read.
        KernelUnusable: the kernel is not of a form we can boot.
        KernelToolFailed: dpkg-deb or depmod is missing or failed.
        KitDamaged: a kit that was made before has lost a file.
        KitUnwritable: `cache_folder` takes no kit; nothing is left of it.
    """
    assert kernel_package is None or kernel is None
    guest = _read(guest_program)
    if kernel_package is not None:
        # A package's name carries its version; its time is that of the download.
        source_key: list[str | int] = [kernel_package.name, _stat(kernel_package).st_size]
    else:
        kernel = kernel or find_installed_kernel()
        source_key = [kernel.release, *_stat_key(kernel.vmlinuz), *_stat_key(kernel.modules / "modules.dep")]
    inputs = [KIT_FORMAT, hashlib.sha256(guest).hexdigest(), source_key, GUEST_MODULES]
    digest = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:_DIGEST_LENGTH]
    folder = cache_folder / f"{_KIT_PREFIX}{digest}"
    if not folder.exists():

        def make(workspace: Path) -> None:
            if kernel_package is not None:
                with tempfile.TemporaryDirectory(prefix=".kernel-", dir=cache_folder) as unpacked:
                    _make_kit(workspace, guest, unpack_package(kernel_package, Path(unpacked)))
            else:
                assert kernel is not None
                _make_kit(workspace, guest, kernel)

        _publish(folder, make)
    return open_kit(folder)


def open_kit(folder: Path) -> BootKit:
    """Return the kit in `folder`, having checked that its files have the lengths they were made with.

    Raises:
        KitDamaged: they have not.
    """
    remedy = f"remove {folder}; it is made again"
    kernel, initramfs = folder / _KERNEL_FILE, folder / _INITRAMFS_FILE
    try:
        manifest = _Manifest(**json.loads((folder / _MANIFEST_FILE).read_text(encoding="utf-8")))
        lengths = (kernel.stat().st_size, initramfs.stat().st_size)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise KitDamaged(f"the boot kit {folder.name} is damaged", remedy=remedy) from error
    if lengths != (manifest.kernel_bytes, manifest.initramfs_bytes):
        raise KitDamaged(f"the boot kit {folder.name} has files of a wrong length", remedy=remedy)
    return BootKit(kernel, initramfs, manifest.kernel_release, folder.name.removeprefix(_KIT_PREFIX))


def _make_kit(folder: Path, guest: bytes, source: KernelSource) -> None:
    vmlinux = unpack_vmlinux(_read(source.vmlinuz))
    modules = [(_plain_name(path), read_module(path)) for path in modules_in_order(source.modules)]
    initramfs = build_initramfs(guest, modules)
    names = [name for name, _ in modules]
    manifest = _Manifest(KIT_FORMAT, source.release, len(vmlinux), len(initramfs), names)
    _write(folder / _KERNEL_FILE, vmlinux)
    _write(folder / _INITRAMFS_FILE, initramfs)
    _write(folder / _MANIFEST_FILE, json.dumps(asdict(manifest), indent=1).encode())


def _publish(folder: Path, make: Callable[[Path], None]) -> None:
    """Make `folder` whole or not at all: beside it, then renamed.

    Raises:
        KitUnwritable: its file system has no room, or takes nothing.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        workspace = Path(tempfile.mkdtemp(prefix=".kit-", dir=folder.parent))
        try:
            make(workspace)
            workspace.chmod(0o755)
            _sync_folder(workspace)
            try:
                workspace.rename(folder)
            except OSError:
                if not folder.exists():  # Else another process was first, with the same content.
                    raise
            _sync_folder(folder.parent)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)
    except OSError as error:
        raise KitUnwritable(
            f"the boot kit {folder} cannot be written: {error.strerror}",
            remedy="make room there, or set kits_dir to another folder",
        ) from error


def _plain_name(path: Path) -> str:
    return path.name.partition(".")[0] + ".ko"


def _stat_key(path: Path) -> list[str | int]:
    """Identify an installed file without reading it: name, length and time."""
    found = _stat(path)
    return [path.name, found.st_size, found.st_mtime_ns]


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as error:
        raise KitInputMissing(f"{path} cannot be read: {error.strerror}", path=str(path)) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KitInputMissing(f"{path} cannot be read: {error.strerror}", path=str(path)) from error


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
