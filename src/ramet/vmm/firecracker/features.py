"""What a version of Firecracker can do, and how its requests are named there.

Told by the program (`--version`) before anything is started, and by each process of itself (`GET /version`):
one that was started before an upgrade is still the older one.
"""

import re
from dataclasses import dataclass
from typing import Final

from ramet.core.errors import Broken
from ramet.vmm.feature import Feature

OLDEST: Final = (1, 10)
NEWEST_KNOWN: Final = (1, 16)
"""The newest whose API was read; of a newer one, the same is expected."""


TRACK_DIRTY_PAGES: Final = Feature(
    "track_dirty_pages", (1, 13), "a load's name for what was called enable_diff_snapshots"
)
NETWORK_OVERRIDES: Final = Feature(
    "network_overrides", (1, 12), "a child's network card is given the child's own TAP"
)
CLOCK_REALTIME: Final = Feature("clock_realtime", (1, 16), "not used: the agent is told the time")
VSOCK_OVERRIDE: Final = Feature("vsock_override", (1, 16), "not needed: paths are relative")
FEATURES: Final = (NETWORK_OVERRIDES, TRACK_DIRTY_PAGES, CLOCK_REALTIME, VSOCK_OVERRIDE)


@dataclass(frozen=True, slots=True)
class Release:
    """One version, such as 1.16.1."""

    text: str

    @classmethod
    def told(cls, output: str) -> "Release":
        """Read what `--version` printed.

        Raises:
            Broken: that is no version, or one that is too old.
        """
        found = re.search(r"Firecracker v(\S+)", output)
        release = cls.named(found[1] if found else "")
        if release.number < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise Broken(
                f"Firecracker {release.text} is too old", remedy=f"install Firecracker {oldest} or newer"
            )
        return release

    @classmethod
    def named(cls, text: str) -> "Release":
        """Return the release of that name.

        Raises:
            Broken: it is no version.
        """
        if re.fullmatch(r"\d+\.\d+\.\d+\S*", text) is None:
            raise Broken(
                f"firecracker does not tell its version, but {text[:40]!r}",
                remedy="see `firecracker --version`",
            )
        return cls(text)

    @property
    def number(self) -> tuple[int, int]:
        major, minor, *_ = self.text.split(".")
        return int(major), int(minor)

    def has(self, feature: Feature) -> bool:
        return self.number >= feature.since
