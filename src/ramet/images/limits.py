"""How much an image may ask of this host before it is refused.

Every number a layer or manifest can lie about has a bound here, so that a small hostile file cannot
fill a disk or the daemon's memory.
"""

from dataclasses import dataclass
from typing import Final

GIB: Final = 1 << 30
MIB: Final = 1 << 20

LAYER_BYTES_MAX: Final = 32 * GIB
IMAGE_BYTES_MAX: Final = 64 * GIB
ENTRY_COUNT_MAX: Final = 4_000_000
LAYER_COUNT_MAX: Final = 512  # Docker stops at 127; other builders do not.
DOCUMENT_BYTES_MAX: Final = 4 * MIB  # The same bound that registries put on a manifest.
HEADER_BYTES_MAX: Final = MIB  # All tar headers of one entry, as in Go's archive/tar.
PATH_BYTES_MAX: Final = 3584  # PATH_MAX, less room for the name of the staging folder.
PATH_DEPTH_MAX: Final = 256
ARCHIVE_MEMBER_COUNT_MAX: Final = 65_536
FREE_BYTES_MIN: Final = GIB  # Guests write to the same disk, and a full one fails them.


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Bounds on one image, and on what all of them take.

    Attributes:
        layer_bytes_max: length of one layer's uncompressed tar stream, and of a compressed archive.
        image_bytes_max: logical bytes of all files in all layers, holes included.
        entry_count_max: tar entries in all layers.
        layer_count_max: layers in the manifest.
        document_bytes_max: length of one index, manifest or config.
        free_bytes_min: of the disk, left alone by whatever is pulled or unpacked.
        storage_bytes_max: of all images and downloaded layers together; None: as the disk allows.
    """

    layer_bytes_max: int = LAYER_BYTES_MAX
    image_bytes_max: int = IMAGE_BYTES_MAX
    entry_count_max: int = ENTRY_COUNT_MAX
    layer_count_max: int = LAYER_COUNT_MAX
    document_bytes_max: int = DOCUMENT_BYTES_MAX
    free_bytes_min: int = FREE_BYTES_MIN
    storage_bytes_max: int | None = None
