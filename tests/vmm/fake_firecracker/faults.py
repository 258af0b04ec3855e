"""Failure on demand: a file in the folder that RAMET_FAKE_FIRECRACKER_FAULTS names.

A file `KIND:METHOD /path` (slashes as `|`), or `KIND:METHOD /path@ID` for the VMM of that `--id` alone, is
taken by the first that comes to such a call, by renaming it to `taken-...`: what stands still is seen so.
"""

import os
import signal
from pathlib import Path
from typing import Final, Literal

from tests.vmm.fake_firecracker.api import Refused

VARIABLE: Final = "RAMET_FAKE_FIRECRACKER_FAULTS"
TAKEN: Final = "taken-"
Kind = Literal["fail", "hang", "die", "late-fail", "late-hang", "late-die"]
"""Each before the call does anything or, late, when all of it was done and only the answer is lost."""


def arm(folder: Path, kind: Kind, call: str, vmm_id: str | None = None) -> None:
    """Have one `call`, such as "PUT /snapshot/load", go wrong."""
    (folder / _name(kind, call, vmm_id)).touch()


def is_taken(folder: Path, kind: Kind, call: str, vmm_id: str | None = None) -> bool:
    """Tell whether a call has come to an armed fault."""
    return (folder / (TAKEN + _name(kind, call, vmm_id))).exists()


def strike(call: str, vmm_id: str, *, late: bool, variable: str = VARIABLE) -> None:
    """Do what is armed for `call`, if anything; `variable` names the folder.

    Raises:
        Refused: that is to fail.
    """
    if variable not in os.environ:
        return
    folder, prefix = Path(os.environ[variable]), "late-" if late else ""
    kinds: tuple[Kind, ...] = ("fail", "hang", "die")
    for kind in kinds:
        for which in (None, vmm_id):
            name = _name(prefix + kind, call, which)
            try:
                (folder / name).rename(folder / (TAKEN + name))
            except FileNotFoundError:
                continue
            _do(kind)


def _do(kind: Kind) -> None:
    match kind:
        case "fail":
            raise Refused("on demand")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            while True:  # Until somebody kills us.
                signal.pause()


def _name(kind: str, call: str, vmm_id: str | None) -> str:
    name = f"{kind}:{call.replace('/', '|')}"
    return name if vmm_id is None else f"{name}@{vmm_id}"
