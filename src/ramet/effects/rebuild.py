"""Records that the database has lost, made again from what lies beside the instances' disks.

The database may be gone, or an older copy of it may have been put back. An instance's folder goes before its
record does, so a folder that has a spec but no record is an instance of which the record was lost. It is
never taken for rubbish. Whether it runs, the host tells.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord, State
from ramet.effects.folder import SPEC_FILE
from ramet.effects.site import Site, limits_of
from ramet.linux.plain_file import open_plain
from ramet.net.slots import SlotHeld
from ramet.store.database import StateUnreadable

ID_PART_LENGTH = 6


def find_lost_records(site: Site, known: Mapping[InstanceId, InstanceRecord]) -> list[InstanceRecord]:
    """Return the records of whole instances that `known` lacks, oldest first, as if all awake ones ran.

    Raises:
        StateUnreadable: a spec is damaged, so that whether it names a disk cannot be told.
    """
    lost = []
    for folder in site.folder.instances.iterdir():
        if folder.name not in known:
            record = _read(folder)
            if record is not None and record.layer is not None:
                state = State.RUNNING if record.capture is None else State.STANDBY
                lost.append(replace(record, state=state, runtime=None, is_deleting=False))
    return sorted(lost, key=lambda record: record.identity.created_at)


def take_up(site: Site, record: InstanceRecord, *, is_running: bool) -> InstanceRecord:
    """Make a lost record durable again, under a name and a slot that are free; returns it as it is then.

    Raises:
        RametError: it cannot be written, or no slot is free.
    """
    taken = {other.name for other in site.database.load()}
    slot = record.identity.slot
    if slot is not None:
        try:
            site.network.adopt(
                record.id,
                slot,
                is_attached=is_running,
                limits=limits_of(record.spec),
                by_name=site.opens_taps(record.spec),
            )
        except SlotHeld:
            slot = site.network.reserve(record.id).slot
    identity = replace(record.identity, name=_free_name(record, taken), slot=slot)
    record = replace(record, identity=identity)
    if is_running:  # Whether its guest has answered yet is not known; it will, again.
        record = replace(record, state=State.INITIALIZING, capture=None)
    site.database.save(record)
    return record


def _free_name(record: InstanceRecord, taken: Collection[str]) -> str:
    if record.name not in taken:
        return record.name
    part = record.id[:ID_PART_LENGTH]
    return f"{record.name[: 62 - ID_PART_LENGTH].rstrip('-')}-{part}"


def _read(folder: Path) -> InstanceRecord | None:
    """Return the record kept in `folder`, None if there is none: it was never made whole."""
    path = folder / SPEC_FILE
    try:
        with open(open_plain(path, os.O_RDONLY)) as file:  # Where a jailed VMM may have had its way.
            record = InstanceRecord.from_json(file.read())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise StateUnreadable(
            f"{path} cannot be read, and the database does not know the instance: {error}",
            remedy=f"repair it, or move {folder} away to give the instance up",
        ) from error
    if record.id != folder.name:
        raise StateUnreadable(
            f"{path} is of another instance, {record.id}", remedy=f"move {folder} out of the data folder"
        )
    return record
