"""OCI images as read-only root disks; `Catalog` is the door."""

from ramet.images.catalog import Catalog
from ramet.images.config import ImageConfig
from ramet.images.convert import ImportProgress, Phase
from ramet.images.documents import LINUX_AMD64, Platform, parse_platform
from ramet.images.limits import ImageLimits
from ramet.images.pulls import PullStatus, PullView
from ramet.images.record import Image
from ramet.images.reference import Digest, Reference, parse_reference
from ramet.images.registry import Credentials, RegistryConfig
from ramet.images.source import Source

__all__ = (
    "LINUX_AMD64",
    "Catalog",
    "Credentials",
    "Digest",
    "Image",
    "ImageConfig",
    "ImageLimits",
    "ImportProgress",
    "Phase",
    "Platform",
    "PullStatus",
    "PullView",
    "Reference",
    "RegistryConfig",
    "Source",
    "parse_platform",
    "parse_reference",
)
