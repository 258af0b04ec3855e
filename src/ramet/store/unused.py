"""Since when nobody uses the images that nobody uses, in a file of the data folder."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import structlog

from ramet.core.errors import Broken
from ramet.store.paths import write_whole

log = structlog.get_logger(__name__)


class UnusedUnwritable(Broken):
    """Since when images are unused cannot be written down."""

    code = "unused_images_unwritable"


class UnusedFile:
    """The file, which need not be there. For one thread at a time; to save blocks."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> dict[str, float]:
        """Return since when each image, by digest, is unused, in Unix seconds.

        Of a damaged file, nothing: the time of all images begins anew, and none goes too early.
        """
        try:
            found = {
                str(digest): float(since) for digest, since in json.loads(self._path.read_text()).items()
            }
            if not all(map(math.isfinite, found.values())):
                raise ValueError("a time is not finite")
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            log.error("unused_images_unreadable", file=str(self._path), error=str(error))
            return {}
        return found

    def save(self, since: Mapping[str, float]) -> None:
        """Write it down. Durable when this returns.

        Raises:
            UnusedUnwritable: the disk is full; what was there is there.
        """
        try:
            write_whole(self._path, json.dumps(since, indent=1, sort_keys=True).encode())
        except OSError as error:
            raise UnusedUnwritable(
                f"{self._path} cannot be written: {error.strerror}",
                remedy="see that the file system of the data folder has space and can be written",
            ) from error

    def forget(self) -> None:
        """Have it be as if nothing was ever written.

        Raises:
            UnusedUnwritable: it cannot be removed.
        """
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise UnusedUnwritable(f"{self._path} cannot be removed: {error.strerror}") from error
