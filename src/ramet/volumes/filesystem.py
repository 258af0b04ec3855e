"""The file system of a volume: a sparse file with an ext4 in it.

It is made by mkfs.ext4, from a folder if there is one, and never mounted on the host. What a guest has
written to it is not trusted: all that is ever read of it here is one field of its superblock.
"""

import errno
import os
import struct
import subprocess
from pathlib import Path
from typing import Final

from ramet.volumes.errors import ArchiveTooLarge, VolumeBroken, VolumeUnwritable

BYTES_PER_INODE: Final = 16_384
"""What mkfs.ext4 takes of itself, for all but the smallest and the largest."""

# https://docs.kernel.org/filesystems/ext4/super.html
_SUPERBLOCK: Final = 1024
_MAGIC: Final = struct.Struct("<H")
_MAGIC_OFFSET: Final = _SUPERBLOCK + 0x38
_EXT4: Final = 0xEF53
_INCOMPATIBLE: Final = struct.Struct("<I")
_INCOMPATIBLE_OFFSET: Final = _SUPERBLOCK + 0x60
_NEEDS_RECOVERY: Final = 0x4

_FULL: Final = ("No space left on device", "Could not allocate", "too small")
_COMMAND: Final = ("mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^resize_inode")
# Tables are left to be zeros of the sparse file: written out, those of a terabyte would be 17 GB.
_OPTIONS: Final = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"


def make_file_system(file: Path, size_bytes: int, tree: Path | None = None, entry_count: int = 0) -> None:
    """Write an ext4 of `size_bytes` to `file`, which is not there yet; durable when this returns. Blocks.

    Args:
        tree: a folder whose content it is to have, with owners, modes, times and attributes.
        entry_count: how much is in it, at most.

    Raises:
        ArchiveTooLarge: the tree does not fit.
        VolumeUnwritable: the disk is full, or mkfs.ext4 is missing or failed.
    """
    options, command = _OPTIONS, list(_COMMAND)
    if tree is not None:
        facts = tree.stat()
        options += f",root_owner={facts.st_uid}:{facts.st_gid}"
        command += ["-d", str(tree)]
        if entry_count > size_bytes // BYTES_PER_INODE // 2:
            command += ["-N", str(entry_count * 2)]
    try:
        with file.open("xb") as empty:
            empty.truncate(size_bytes)
        done = subprocess.run(
            [*command, "-E", options, str(file)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode == 0:
            with file.open("rb") as written:
                os.fsync(written.fileno())
    except FileNotFoundError as error:
        raise VolumeUnwritable("mkfs.ext4 is not installed", remedy="apt-get install e2fsprogs") from error
    except OSError as error:
        raise VolumeUnwritable(f"no volume can be made: {error.strerror}") from error
    if done.returncode != 0:
        said = " ".join(done.stdout.split())
        # The host's own disk being full reads the same; then there is no room for an empty one, either.
        if tree is not None and any(text in said for text in _FULL) and not _is_full(file.parent):
            raise ArchiveTooLarge(f"the files of the archive do not fit into {size_bytes} bytes")
        raise VolumeUnwritable(f"mkfs.ext4 failed: {said[-500:]}")


def is_clean(file: Path) -> bool:
    """Tell whether a volume was taken off as it should be, so that one who cannot write can read it.

    Raises:
        VolumeBroken: there is no ext4, or no such file.
    """
    try:
        with file.open("rb") as disk:
            head = disk.read(_SUPERBLOCK * 2)
    except OSError as error:
        raise VolumeBroken(f"{file} cannot be read: {error.strerror}") from error
    if len(head) < _SUPERBLOCK * 2 or _MAGIC.unpack_from(head, _MAGIC_OFFSET) != (_EXT4,):
        raise VolumeBroken(f"{file} holds no ext4", remedy="delete the volume, and make it anew")
    (incompatible,) = _INCOMPATIBLE.unpack_from(head, _INCOMPATIBLE_OFFSET)
    return not incompatible & _NEEDS_RECOVERY


def _is_full(folder: Path) -> bool:
    """Tell whether not even a megabyte can be written there."""
    try:
        facts = os.statvfs(folder)
    except OSError as error:
        return error.errno == errno.ENOSPC
    return facts.f_bavail * facts.f_frsize < 1 << 20
