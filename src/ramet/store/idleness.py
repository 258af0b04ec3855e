"""For how long instances had been idle when the last daemon ended, in a file of the data folder."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import structlog

from ramet.core.auto_standby import LeftIdle
from ramet.core.ids import InstanceId
from ramet.store.paths import write_whole

log = structlog.get_logger(__name__)


class IdleFile:
    """The file, which need not be there: it is written by a daemon that ends, and taken by the next."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self) -> dict[InstanceId, LeftIdle]:
        """Return what the last daemon left, once; nothing if it was killed, or the file is damaged.

        What cannot be removed is not returned either: a later daemon would take it for news.
        """
        try:
            text = self._path.read_text()
            self._path.unlink()
            return {InstanceId(instance): _left(raw) for instance, raw in json.loads(text).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            log.error("idle_times_unreadable", file=str(self._path), error=str(error))
            return {}

    def leave(self, left: Mapping[InstanceId, LeftIdle]) -> None:
        """Write it down for the next daemon. Never fails: without it, all times begin anew."""
        text = json.dumps(
            {key: {"idle_s": one.idle_s, "hold_until": one.hold_until} for key, one in left.items()}
        )
        try:
            write_whole(self._path, text.encode())
        except OSError as error:
            log.error("idle_times_unwritable", file=str(self._path), error=str(error))


def _left(raw: Mapping[str, float | None]) -> LeftIdle:
    idle_s, hold_until = raw["idle_s"], raw["hold_until"]
    if not isinstance(idle_s, int | float) or not math.isfinite(idle_s) or idle_s < 0:
        raise ValueError(f"nobody is idle for {idle_s!r} s")
    if hold_until is not None and not math.isfinite(hold_until):
        raise ValueError(f"nobody is held until {hold_until!r}")
    return LeftIdle(float(idle_s), hold_until)
