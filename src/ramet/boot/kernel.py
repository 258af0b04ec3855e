"""The guest's kernel is the distribution's own: unpacked once, with the modules our guests need.

A VMM boots an uncompressed ELF `vmlinux` without a word of real-mode code and without inflating it on every
boot, so the bzImage is taken apart here, on the host, once. The distribution builds virtio, EROFS and
overlayfs as modules; they are listed in the order of `modules.dep`, each behind what it needs, so that
the guest's init can load them one after the other and know nothing of dependencies.
"""

import lzma
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import lz4.block

from ramet.core.errors import Broken, Invalid

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# What a guest needs beyond the built-ins. inet_diag and tcp_diag let a fork destroy the TCP connections of
# its parent's address (SOCK_DESTROY); crc32c_generic is only a soft dependency of ext4's checksums; the vsock
# is how Firecracker's guests are spoken to.
GUEST_MODULES: Final = (
    "virtio_pci",
    "virtio_mmio",
    "virtio_console",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
    "erofs",
    "overlay",
    "crc32c_generic",
    "ext4",
    "inet_diag",
    "tcp_diag",
    # Last: the guest leaves them alone where it has no such device.
    "virtio_mem",
    "vsock",
    "vmw_vsock_virtio_transport",
)
VMLINUX_BYTES_MAX: Final = 512 << 20  # A distribution's kernel is some 30-60 MiB unpacked.
MODULE_BYTES_MAX: Final = 64 << 20  # Those that guests need have less than 2 MiB.

# Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header"; offsets in the file.
_SETUP_SECTS_OFFSET: Final = 0x1F1  # u8; 0 means 4
_MAGIC_OFFSET: Final = 0x202  # "HdrS"
_VERSION_OFFSET: Final = 0x206  # u16 LE; payload fields since 2.08
_PAYLOAD_OFFSET: Final = 0x248  # u32 LE offset and u32 LE length, from the protected-mode code on
_HEADER_END: Final = 0x250
_SECTOR_BYTES: Final = 512

_LZ4_LEGACY_MAGIC: Final = b"\x02\x21\x4c\x18"
_LZ4_LEGACY_BLOCK_BYTES: Final = 8 << 20

_DEPMOD_TIMEOUT_S: Final = 60
_DPKG_TIMEOUT_S: Final = 120
_TOOL_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"  # depmod lies in sbin, which a service's PATH may lack.


class KernelUnusable(Invalid):
    """A kernel, or its modules, is not of a form that we can boot guests with."""

    code = "kernel_unusable"
    remedy_default = "use the distribution's: apt-get install --reinstall linux-image-cloud-amd64"


class KernelToolFailed(Broken):
    """A program that unpacks or indexes kernels is missing or failed."""

    code = "kernel_tool_failed"


@dataclass(frozen=True)
class KernelSource:
    """A distribution's kernel, as installed or as unpacked from its package.

    Args:
        release: what `uname -r` says under it, e.g. "6.1.0-56-cloud-amd64".
        vmlinuz: the bzImage.
        modules: the folder `lib/modules/<release>`.
    """

    release: str
    vmlinuz: Path
    modules: Path


def unpack_vmlinux(bzimage: bytes) -> bytes:
    """Return the uncompressed ELF kernel inside `bzimage`; an image that is an ELF file is returned as is.

    Raises:
        KernelUnusable: not an x86 bzImage of boot protocol 2.08 or later, or a payload that is cut off, or
            compressed in a way we do not know (known: lz4, zstd, xz, gzip).
    """
    if bzimage.startswith(b"\x7fELF"):
        return bzimage
    if len(bzimage) < _HEADER_END or bzimage[_MAGIC_OFFSET : _MAGIC_OFFSET + 4] != b"HdrS":
        raise KernelUnusable("the kernel is neither an ELF file nor an x86 bzImage")
    (version,) = struct.unpack_from("<H", bzimage, _VERSION_OFFSET)
    if version < 0x0208:
        raise KernelUnusable(
            f"the kernel's boot protocol {version >> 8}.{version & 255:02} is older than 2.08"
        )
    code_start = ((bzimage[_SETUP_SECTS_OFFSET] or 4) + 1) * _SECTOR_BYTES
    offset, length = struct.unpack_from("<II", bzimage, _PAYLOAD_OFFSET)
    payload = bzimage[code_start + offset : code_start + offset + length]
    if len(payload) != length or length < 8:
        raise KernelUnusable("the kernel image is cut off")
    vmlinux = _decompress(payload)
    if not vmlinux.startswith(b"\x7fELF"):
        raise KernelUnusable("the kernel's payload is not an ELF file")
    return vmlinux


def _decompress(payload: bytes) -> bytes:
    """Decompress the payload of a bzImage.

    The kernel's build appends the uncompressed length (u32 LE) where the format does not end with it itself
    (scripts/Makefile.lib, size_append; gzip ends with it anyway), and `payload_length` counts it.
    """
    (size_bytes,) = struct.unpack("<I", payload[-4:])
    if size_bytes > VMLINUX_BYTES_MAX:
        raise KernelUnusable(f"the kernel claims to be {size_bytes} bytes unpacked")
    decompress = next((f for magic, f in _FORMATS.items() if payload.startswith(magic)), None)
    if decompress is None:
        raise KernelUnusable(f"the kernel is compressed in an unknown way (it begins {payload[:6].hex()})")
    try:
        vmlinux = decompress(payload, size_bytes)
    except (lz4.block.LZ4BlockError, lzma.LZMAError, zstd.ZstdError, zlib.error, OSError, EOFError) as error:
        raise KernelUnusable("the kernel's payload is damaged") from error
    if len(vmlinux) != size_bytes:
        raise KernelUnusable(f"the kernel unpacks to {len(vmlinux)} bytes instead of {size_bytes}")
    return vmlinux


def _lz4_legacy(payload: bytes, size_bytes: int) -> bytes:
    """Decompress an lz4 legacy frame: blocks of at most 8 MiB, each behind its length (u32 LE)."""
    parts: list[bytes] = []
    position, done_bytes = len(_LZ4_LEGACY_MAGIC), 0
    while done_bytes < size_bytes:
        if position + 4 > len(payload):
            raise KernelUnusable("the kernel's payload is cut off")
        (length,) = struct.unpack_from("<I", payload, position)
        position += 4
        block = payload[position : position + length]
        parts.append(lz4.block.decompress(block, uncompressed_size=_LZ4_LEGACY_BLOCK_BYTES))
        position += length
        done_bytes += len(parts[-1])
    return b"".join(parts)


_FORMATS: Final[dict[bytes, Callable[[bytes, int], bytes]]] = {
    _LZ4_LEGACY_MAGIC: _lz4_legacy,
    b"\x28\xb5\x2f\xfd": lambda payload, size: zstd.ZstdDecompressor().decompress(payload, size),
    b"\xfd7zXZ\x00": lambda payload, size: lzma.LZMADecompressor().decompress(payload, size),
    b"\x1f\x8b": lambda payload, size: _unpack(_gzip_decompressor(), payload, size),
}


def _unpack(decompressor: Any, packed: bytes, bytes_max: int) -> bytes:
    """Return all that is in `packed`, or its first `bytes_max` + 1 bytes, by a decompressor of any kind.

    Raises:
        EOFError: it is cut off.
    """
    unpacked: bytes = decompressor.decompress(packed, bytes_max + 1)
    if not decompressor.eof and len(unpacked) <= bytes_max:
        raise EOFError
    return unpacked


def _gzip_decompressor() -> Any:
    return zlib.decompressobj(zlib.MAX_WBITS | 16)


def unpack_package(package: Path, folder: Path) -> KernelSource:
    """Unpack the kernel package `package` (a .deb) into the empty `folder`, and index its modules.

    Raises:
        KernelToolFailed: dpkg-deb or depmod is missing or refused.
        KernelUnusable: no kernel, or more than one, is in the package.
    """
    _run(["dpkg-deb", "--extract", str(package), str(folder)], _DPKG_TIMEOUT_S, "dpkg")
    images = sorted((folder / "boot").glob("vmlinuz-*"))
    if len(images) != 1:
        raise KernelUnusable(f"{package.name} contains {len(images)} kernels instead of one")
    release = images[0].name.removeprefix("vmlinuz-")
    modules = next((m for m in _module_folders(folder, release) if m.is_dir()), None)
    if modules is None:
        raise KernelUnusable(f"{package.name} contains no modules for its kernel {release}")
    if not (modules / "modules.dep").exists():  # A package leaves this to its installation.
        base = modules.parents[2]
        _run(["depmod", "--basedir", str(base), release], _DEPMOD_TIMEOUT_S, "kmod")
    return KernelSource(release, images[0], modules)


def _module_folders(root: Path, release: str) -> tuple[Path, Path]:
    return root / "lib" / "modules" / release, root / "usr" / "lib" / "modules" / release


def modules_in_order(modules: Path, wanted: Iterable[str] = GUEST_MODULES) -> list[Path]:
    """Return the files of `wanted` and of all they depend on, in an order in which they can be loaded.

    Names are equal whether written with `-` or `_`. Built-in modules are left out, and so is crc32c_generic
    where the kernel has none.

    Raises:
        KernelUnusable: a module is neither in `modules.dep` nor built in, or the index is damaged.
    """
    needs: dict[str, list[str]] = {}
    files: dict[str, Path] = {}
    for line in _index(modules / "modules.dep").splitlines():
        path, colon, rest = line.partition(":")
        if not colon:
            raise KernelUnusable(f"{modules / 'modules.dep'} is damaged")
        files[_module_name(path)] = modules / path
        needs[_module_name(path)] = [_module_name(needed) for needed in rest.split()]
    built_in = {_module_name(path) for path in _index(modules / "modules.builtin").split()}

    ordered: dict[str, Path] = {}
    under_way = set[str]()

    def place(name: str) -> None:
        if name in ordered or name in built_in or (name == "crc32c_generic" and name not in files):
            return
        if name not in files:
            raise KernelUnusable(f"the kernel in {modules} has no module {name}", module=name)
        if name in under_way:
            raise KernelUnusable(f"the module {name} in {modules} depends on itself", module=name)
        under_way.add(name)
        # modules.dep lists all dependencies, the nearest first; so the last is loaded first (modules.dep(5)).
        for needed in reversed(needs[name]):
            place(needed)
        ordered[name] = files[name]

    for name in wanted:
        place(_module_name(name))
    return list(ordered.values())


def read_module(path: Path) -> bytes:
    """Return the ELF object in `path`: `.ko`, or `.ko.xz`, `.ko.zst`, `.ko.gz` unpacked.

    Unpacked here because the kernel's own decompression of modules is an option that few kernels have.

    Raises:
        KernelUnusable: it cannot be read, is too large, damaged or compressed otherwise, or no ELF object.
    """
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise KernelUnusable(f"the module {path} cannot be read: {error.strerror}") from error
    try:
        match path.suffix:
            case ".xz":
                module = _unpack(lzma.LZMADecompressor(), packed, MODULE_BYTES_MAX)
            case ".zst":
                module = _unpack(zstd.ZstdDecompressor(), packed, MODULE_BYTES_MAX)
            case ".gz":
                module = _unpack(_gzip_decompressor(), packed, MODULE_BYTES_MAX)
            case _:
                module = packed
    except (lzma.LZMAError, zstd.ZstdError, zlib.error, OSError, EOFError) as error:
        raise KernelUnusable(f"the module {path.name} is damaged") from error
    if len(module) > MODULE_BYTES_MAX:
        raise KernelUnusable(f"the module {path.name} has more than {MODULE_BYTES_MAX} bytes")
    if not module.startswith(b"\x7fELF"):
        raise KernelUnusable(f"the module {path.name} is not an ELF object")
    return module


def _index(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError as error:
        raise KernelUnusable(
            f"{path} cannot be read: {error.strerror}", remedy=f"run depmod {path.parent.name}"
        ) from error
    except UnicodeDecodeError as error:
        raise KernelUnusable(f"{path} is damaged", remedy=f"run depmod {path.parent.name}") from error


def _module_name(path: str) -> str:
    return Path(path).name.partition(".")[0].replace("-", "_")


def _run(argv: list[str], timeout_s: float, package: str) -> None:
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout_s, check=False, env={"PATH": _TOOL_PATH}
        )
    except FileNotFoundError as error:
        raise KernelToolFailed(f"{argv[0]} is missing", remedy=f"apt-get install {package}") from error
    except subprocess.TimeoutExpired as error:
        raise KernelToolFailed(f"{argv[0]} took longer than {timeout_s:.0f} s") from error
    if done.returncode != 0:
        raise KernelToolFailed(f"{argv[0]} failed: {done.stderr.strip()[-400:]}")
