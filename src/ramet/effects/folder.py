"""The folder of an instance: what its VMM and its guest are told by files, and what is kept to find it again.

`spec.json` is the instance's record as it was when its disk last changed its top. It is written whole and
after the database, so that the records of a lost database can be made again from the folders.
"""

import os
import shutil
from pathlib import Path
from typing import Final

import structlog

from ramet.core.errors import Broken
from ramet.core.spec import InstanceRecord
from ramet.effects.machine import write_config_disk
from ramet.effects.site import Site
from ramet.linux.plain_file import open_plain
from ramet.logs.rotation import held
from ramet.store.paths import PART_SUFFIX, write_whole

SPEC_FILE: Final = "spec.json"
BASE_FILE: Final = "base-memory"
"""The memory file that a running instance woke from, by another name: its VMM maps it anyway."""
CONSOLE_FILE: Final = "console.log"
STARTED_LINE: Final = b"RAMET-HOST started again"
"""What stands in a console's log between two runs; what is before it is of an earlier one."""

log = structlog.get_logger(__name__)


class FolderUnwritable(Broken):
    """The folder of an instance cannot be written: the disk is full, or failing."""

    code = "instance_folder_unwritable"


def prepare_folder(site: Site, record: InstanceRecord) -> None:
    """Make the folder of an instance, with its config disk; its spec comes when it has a disk to be found by.

    Raises:
        FolderUnwritable: the disk is full.
        Invalid: the guest cannot be told what it should.
    """
    folder = site.instance_folder(record.id)
    try:
        folder.mkdir(mode=0o700)
        write_config_disk(site, record, folder / "config.img")
    except OSError as error:
        raise _unwritable(record, error) from error


def name_folder(site: Site, record: InstanceRecord) -> None:
    """Have a folder that was made ahead tell whose it has become; the VMM has its config disk open already.

    Raises:
        FolderUnwritable, Invalid: see `prepare_folder`.
    """
    try:
        write_config_disk(site, record, site.instance_folder(record.id) / "config.img")
    except OSError as error:
        raise _unwritable(record, error) from error


def prepare_folder_again(site: Site, record: InstanceRecord) -> None:
    """Make the folder of an instance ready for another run: a new config disk, and logs that go on.

    Raises:
        FolderUnwritable, Invalid: see `prepare_folder`; what was there is there.
    """
    folder = site.instance_folder(record.id)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        part = folder / "config.img.part"
        write_config_disk(site, record, part)
        part.rename(folder / "config.img")
        _mark_console(folder / CONSOLE_FILE)
    except OSError as error:
        raise _unwritable(record, error) from error


def keep_folder(folder: Path) -> None:
    """Make the folder of an instance that has its disk still but, by a deletion cut short, no folder."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        log.warning("folder_not_made", folder=str(folder), error=str(error))  # The next start of either does.


def write_spec(folder: Path, record: InstanceRecord) -> None:
    """Keep a record beside the instance's files.

    Raises:
        OSError: the disk is full.
    """
    write_whole(folder / SPEC_FILE, record.to_json().encode(), durable=False)


def base_of(folder: Path) -> Path | None:
    """Return the memory file that the instance woke from, if it is kept."""
    base = folder / BASE_FILE
    return base if base.exists() else None


def drop_base(folder: Path) -> None:
    """Keep the memory file that an instance woke from no longer; its VMM keeps what it maps. Never fails."""
    try:
        for name in (BASE_FILE, BASE_FILE + PART_SUFFIX):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:  # It takes room until the next end, or the deletion.
        log.warning("base_not_dropped", folder=str(folder), error=str(error))


def remove_folder(folder: Path) -> None:
    """Remove the folder of an instance, if there is one.

    Raises:
        Broken: the host refuses; what is left of it can be removed again.
    """
    try:
        with held(folder, alone=True):  # Nobody moves its logs about meanwhile.
            shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Broken(
            f"{folder} cannot be removed: {error.strerror}",
            remedy="see that it can be written, and delete the instance again",
        ) from error


def _mark_console(console: Path) -> None:
    if console.exists():
        with open(open_plain(console, os.O_WRONLY | os.O_APPEND), "ab") as file:
            file.write(b"\n" + STARTED_LINE + b"\n")


def _unwritable(record: InstanceRecord, error: OSError) -> FolderUnwritable:
    return FolderUnwritable(
        f"the folder of instance {record.name} cannot be written: {error.strerror}",
        remedy="see that the file system of the data folder has space and can be written",
    )
