"""The wheel's build hook: builds the Rust programs and names the platform the wheel is for."""

import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# One wheel for every Python 3 on x86-64 Linux: the programs are static and no Python extension is built.
WHEEL_TAG = "py3-none-linux_x86_64"


class NativePrograms(BuildHookInterface[Any]):
    """Puts `ramet-guest` and its siblings into `ramet/_native` before the wheel is packed."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build and tag; `version` is "standard" or "editable", and both need the programs."""
        script = Path(self.root) / "native" / "build.py"
        done = subprocess.run([sys.executable, str(script)], check=False, stderr=subprocess.PIPE, text=True)
        if done.returncode != 0:
            self.app.abort(done.stderr.strip())  # The text alone; a traceback would bury it.
        build_data["pure_python"] = False
        build_data["tag"] = WHEEL_TAG
