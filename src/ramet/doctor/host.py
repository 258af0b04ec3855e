"""The host as a check sees it: a root folder, programs on a search path, and who asks.

A test gives a folder of its own with the files and programs of the host it means; so every outcome of
every check can be shown, and a check has no other source.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

COMMAND_TIMEOUT_S: Final = 2.0
OUTPUT_CHARS_MAX: Final = 8 << 20  # A ruleset of some ten thousand rules.
SBIN: Final = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # Which the PATH of a plain user may lack.


@dataclass(frozen=True, slots=True)
class Output:
    """What a command said and how it ended; `text` is stdout and, after it, stderr."""

    code: int
    text: str


def _default_search_path() -> str:
    return os.pathsep.join((os.environ.get("PATH", os.defpath), *SBIN))


@dataclass(frozen=True, slots=True)
class HostView:
    """Where the checks look.

    Attributes:
        root: the folder that holds /proc, /sys, /dev and the rest.
        search_path: where programs are looked for, as PATH.
        is_root: whether what only root may see can be seen.
    """

    root: Path = Path("/")
    search_path: str = field(default_factory=_default_search_path)
    is_root: bool = field(default_factory=lambda: os.geteuid() == 0)

    def path(self, absolute: str | Path) -> Path:
        """Return where the host's path `absolute` is."""
        return self.root / str(absolute).lstrip("/")

    def exists(self, absolute: str | Path) -> bool:
        """Tell whether the path is there; False also where it may not be looked at."""
        try:
            return self.path(absolute).exists()
        except OSError:
            return False

    def read(self, absolute: str | Path) -> str | None:
        """Return a file's text without the white space around it, None if it cannot be read."""
        try:
            return self.path(absolute).read_text(errors="replace").strip()
        except OSError:
            return None

    def read_number(self, absolute: str | Path) -> int | None:
        """Return the first number in a file, None if there is none."""
        found = re.match(r"-?\d+", self.read(absolute) or "")
        return int(found[0]) if found else None

    def find(self, program: str) -> Path | None:
        """Return where `program` is, None if it is not installed."""
        found = shutil.which(program, path=self.search_path)
        return Path(found) if found else None

    def run(self, program: str, *arguments: str, stdin: str = "") -> Output | None:
        """Run a command that only tells; None if it is not installed, did not start or took too long."""
        found = self.find(program)
        if found is None:
            return None
        try:
            done = subprocess.run(
                [str(found), *arguments],
                input=stdin,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=COMMAND_TIMEOUT_S,
                env={"PATH": self.search_path, "LC_ALL": "C", "HOME": "/nonexistent"},
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return Output(done.returncode, (done.stdout + done.stderr)[:OUTPUT_CHARS_MAX])
