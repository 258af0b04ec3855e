"""How much of the disk images and downloaded layers may take together.

Images are what the quota is for, and stay; layers that no pull uses make way for whatever comes. What is
being downloaded counts with its whole size from the beginning on, so that two pulls cannot promise
themselves the same room.
"""

from collections.abc import Callable

from ramet.images.errors import ImageQuotaReached


class StorageQuota:
    """At most `bytes_max`, or as much as the disk has (None); `image_bytes` tells what images take now."""

    def __init__(self, bytes_max: int | None, image_bytes: Callable[[], int]) -> None:
        self._bytes_max = bytes_max
        self._image_bytes = image_bytes

    def left_bytes(self) -> int | None:
        """Return how much the images leave for layers; None: there is no quota."""
        return None if self._bytes_max is None else max(0, self._bytes_max - self._image_bytes())

    def demand(self, needed_bytes: int) -> None:
        """Make sure that so many bytes fit beside the images there are.

        Raises:
            ImageQuotaReached: they do not.
        """
        if self._bytes_max is None or self._image_bytes() + needed_bytes <= self._bytes_max:
            return
        raise ImageQuotaReached(
            f"The images take {self._image_bytes()} of the {self._bytes_max} bytes that they and their layers"
            f" may take, and {needed_bytes} more are needed",
            remedy="remove images with: ramet image rm NAME, or raise limits.max_image_storage",
            needed_bytes=needed_bytes,
            storage_bytes_max=self._bytes_max,
        )
