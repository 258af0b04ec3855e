"""Writing files of an installation: whole or not at all, never over what somebody else wrote."""

import os
import secrets
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from ramet.core.errors import Broken

HEADER: Final = "# Written by `ramet setup`."
FOLDER_MODE: Final = 0o755


class Outcome(StrEnum):
    """What became of a file."""

    WRITTEN = "written"
    REPLACED = "replaced"
    KEPT = "kept"
    REMOVED = "removed"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that was done, or would be; `note` says why where it is not plain."""

    path: Path
    outcome: Outcome
    note: str = ""


class NotWritable(Broken):
    """A file of the installation cannot be written."""

    code = "setup_not_writable"


def make_folder(path: Path, mode: int, owner: tuple[int, int] | None = None) -> Step:
    """Make a folder, and those above it with 0755; one that is there keeps its mode.

    Raises:
        NotWritable: it cannot be made.
    """
    if path.is_dir():
        return Step(path, Outcome.KEPT)
    try:
        path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        path.mkdir(mode=mode)
        path.chmod(mode)  # Whatever the umask.
        if owner is not None:
            os.chown(path, *owner)
    except OSError as error:
        raise _refused(path, error) from error
    return Step(path, Outcome.WRITTEN)


def write_file(
    path: Path, text: str, mode: int, *, replace: bool, owner: tuple[int, int] | None = None
) -> Step:
    """Write `text` to `path` unless it is there.

    Args:
        replace: write over a file whose first line is `HEADER`; one of somebody else's is kept.

    Raises:
        NotWritable: it cannot be written; nothing was changed.
    """
    try:
        found = path.read_text() if path.exists() else None
        if found == text:
            return Step(path, Outcome.KEPT, "as it should be")
        if found is not None and not (replace and found.startswith(HEADER)):
            return Step(path, Outcome.KEPT, "not written over")
        fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        _write_new(fresh, text, mode, owner)
        try:
            if found is None:
                os.link(fresh, path)  # Unlike a rename, this refuses if somebody was faster.
            else:
                fresh.replace(path)
        finally:
            fresh.unlink(missing_ok=True)
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(path, error) from error
    return Step(path, Outcome.WRITTEN if found is None else Outcome.REPLACED)


def remove_file(path: Path) -> Step:
    """Remove a file that `write_file` made; one of somebody else's is kept.

    Raises:
        NotWritable: it cannot be removed.
    """
    try:
        if not path.exists():
            return Step(path, Outcome.ABSENT)
        if not path.read_text().startswith(HEADER):
            return Step(path, Outcome.KEPT, "not ours")
        path.unlink()
    except (OSError, UnicodeDecodeError) as error:
        raise _refused(path, error) from error
    return Step(path, Outcome.REMOVED)


def _write_new(path: Path, text: str, mode: int, owner: tuple[int, int] | None) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fchmod(fd, mode)
        if owner is not None:
            os.fchown(fd, *owner)
        os.fsync(fd)


def _refused(path: Path, error: Exception) -> NotWritable:
    said = error.strerror if isinstance(error, OSError) else "it is no text"
    remedy = "sudo ramet setup" if isinstance(error, PermissionError) else ""
    return NotWritable(f"{path} cannot be written: {said}", remedy=remedy, path=str(path))
