"""A host made for a test: a root folder with the files and programs the test names, and no others."""

import os
from dataclasses import dataclass
from pathlib import Path

from ramet.doctor.host import HostView


@dataclass
class MadeHost:
    """Files and programs under `root`."""

    root: Path

    @property
    def programs(self) -> Path:
        return self.root / "usr/bin"

    def view(self, *, is_root: bool = True) -> HostView:
        return HostView(self.root, str(self.programs), is_root)

    def file(self, path: str, text: str = "", mode: int = 0o644) -> Path:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        place.chmod(mode)
        return place

    def folder(self, path: str, mode: int = 0o755) -> Path:
        place = self.root / path.lstrip("/")
        place.mkdir(parents=True, exist_ok=True)
        os.chmod(place, mode)
        return place

    def program(self, name: str, script: str = "") -> None:
        """Install a shell script; only what the shell itself can do."""
        self.file(f"usr/bin/{name}", f"#!/bin/sh\n{script}\n", 0o755)
