"""What a version of Cloud Hypervisor can do.

Told by the program (`--version`) before anything is started, and by each process of itself (`vmm.ping`): one
that was started before an upgrade is still the older one.

Facts: release-notes.md and vmm/src/vm_config.rs of cloud-hypervisor, 50 to 53.
"""

import re
from dataclasses import dataclass
from typing import Final

from ramet.core.errors import Broken
from ramet.vmm.feature import Feature

OLDEST: Final = (51, 0)
"""Before it no request says that a disk is raw: a guest that writes another format's head into its disk is
given the files that this names (GHSA-jmr4-g2hv-mjj6)."""
NEWEST_KNOWN: Final = (53, 0)
"""The newest whose API was read; of a newer one, the same is expected."""


FEATURES: Final = (
    Feature("net_fds", (40, 0), "a child's network card is given the child's own TAP, by descriptor"),
    Feature("image_type", (51, 0), "a raw disk is read as nothing else, whatever its guest writes into it"),
    Feature("memory_restore_mode", (52, 0), "not needed: a child maps the capture's file, page by page"),
    Feature("resume", (52, 0), "not needed: changes are laid over a memory before its guest runs"),
)


@dataclass(frozen=True, slots=True)
class Release:
    """One version, such as 53.0."""

    text: str

    @classmethod
    def told(cls, output: str) -> "Release":
        """Read what `--version` printed.

        Raises:
            Broken: that is no version, or one that is too old.
        """
        found = re.search(r"^cloud-hypervisor (v\S+)", output, re.MULTILINE)
        release = cls.named(found[1] if found else output)
        if release.number < OLDEST:
            raise Broken(
                f"Cloud Hypervisor {release.text} is too old",
                remedy=f"install Cloud Hypervisor {OLDEST[0]} or newer",
            )
        return release

    @classmethod
    def named(cls, text: str) -> "Release":
        """Return the release of that name, such as v53.0.

        Raises:
            Broken: it is no version.
        """
        if re.fullmatch(r"v\d+\.\d+\S*", text) is None:
            raise Broken(
                f"cloud-hypervisor does not tell its version, but {text[:40]!r}",
                remedy="see `cloud-hypervisor --version`",
            )
        return cls(text.removeprefix("v"))

    @property
    def number(self) -> tuple[int, int]:
        found = re.match(r"(\d+)\.(\d+)", self.text)
        assert found is not None, "named() has looked"
        return int(found[1]), int(found[2])
