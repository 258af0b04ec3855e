"""A stranger's archive into a folder that a volume is made of.

It is unpacked as a layer of an image is: every path is resolved by the kernel as if the folder were `/`, so
that no name and no symbolic link leads out of it; what is written is counted, and so are the entries. What a
volume has no use for is refused: names that are absolute or climb, and devices.
"""

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ramet.images.blobs import Readable, open_decompressed
from ramet.images.errors import ConversionFailed, ImageTooLarge, LayerCorrupt, StorageFull, UnsafePath
from ramet.images.limits import ImageLimits
from ramet.images.tarstream import TarEntry, entries
from ramet.images.unpack import Staging
from ramet.volumes.errors import ArchiveInvalid, ArchiveTooLarge, VolumeUnwritable

ENTRY_COUNT_MAX: Final = 1_000_000


def unpack(archive: Path, folder: Path, size_bytes: int, check: Callable[[], None]) -> int:
    """Unpack a tar archive, plain or compressed, into an empty folder; returns its count of entries. Blocks.

    Args:
        size_bytes: what all of its files may have together.
        check: called before every entry; raises to stop.

    Raises:
        ArchiveInvalid: it is none, or holds what must not be unpacked.
        ArchiveTooLarge: it holds too much.
        VolumeUnwritable: the disk is full.
    """
    limits = ImageLimits(image_bytes_max=size_bytes, entry_count_max=ENTRY_COUNT_MAX)
    try:
        with archive.open("rb") as file, Staging(folder, limits, check, is_layer=False) as staging:
            staging.add(_acceptable(open_decompressed(file)))
            return staging.finish().entry_count
    except ImageTooLarge as error:
        raise ArchiveTooLarge(
            f"the archive has more than {size_bytes} bytes of files, or {ENTRY_COUNT_MAX} entries"
        ) from error
    except UnsafePath as error:
        raise ArchiveInvalid(f"the archive names a path that leads out of it: {_path(error)}") from error
    except LayerCorrupt as error:
        raise ArchiveInvalid(f"the archive cannot be unpacked: {error.message}") from error
    except (StorageFull, ConversionFailed) as error:
        raise VolumeUnwritable(f"the archive cannot be unpacked: {error.message}") from error
    except OSError as error:
        raise VolumeUnwritable(f"the archive cannot be unpacked: {error.strerror}") from error


def _acceptable(stream: Readable) -> Iterator[TarEntry]:
    for entry in entries(stream):
        _demand_acceptable(entry.info)
        yield entry


def _demand_acceptable(info: tarfile.TarInfo) -> None:
    name = info.name[:200]
    if info.name.startswith("/") or (info.islnk() and info.linkname.startswith("/")):
        raise ArchiveInvalid(f"the archive names an absolute path: {name!a}")
    if info.ischr() or info.isblk():
        raise ArchiveInvalid(f"the archive holds a device: {name!a}")


def _path(error: UnsafePath) -> str:
    return ascii(error.fields.get("path", "")) if "path" in error.fields else error.message
