"""OCI images as read-only root disks; `Catalog` is the door."""

from ramet.images.catalog import Catalog
from ramet.images.config import ImageConfig
from ramet.images.convert import ImportProgress, Phase
from ramet.images.documents import LINUX_AMD64, Platform
from ramet.images.limits import ImageLimits
from ramet.images.record import Image
from ramet.images.reference import Digest, Reference, parse_reference
from ramet.images.source import Source

__all__ = (
    "LINUX_AMD64",
    "Catalog",
    "Digest",
    "Image",
    "ImageConfig",
    "ImageLimits",
    "ImportProgress",
    "Phase",
    "Platform",
    "Reference",
    "Source",
    "parse_reference",
)
