"""Until when guests were asked to give memory back, in a file of the data folder."""

from pathlib import Path

import structlog

from ramet.core.errors import Broken
from ramet.core.guest_memory import ReclaimHold
from ramet.store.paths import write_whole

log = structlog.get_logger(__name__)


class HoldUnwritable(Broken):
    """What guests are to give back cannot be written down."""

    code = "reclaim_hold_unwritable"


class HoldFile:
    """The file, which need not be there. For one thread at a time; to save blocks."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> ReclaimHold | None:
        """Return what was asked for last; None: nothing ever.

        Of a damaged file, what was asked for is over: then guests have all of theirs, and lose nothing.
        """
        try:
            return ReclaimHold.from_json(self._path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            log.error("reclaim_hold_unreadable", file=str(self._path), error=str(error))
            return ReclaimHold(0.0, 0)

    def save(self, hold: ReclaimHold) -> None:
        """Write it down. Durable when this returns.

        Raises:
            HoldUnwritable: the disk is full; what was there is there.
        """
        try:
            write_whole(self._path, hold.to_json().encode())
        except OSError as error:
            raise HoldUnwritable(
                f"{self._path} cannot be written: {error.strerror}",
                remedy="see that the file system of the data folder has space and can be written",
            ) from error
