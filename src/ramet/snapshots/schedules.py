"""Snapshot schedules on the disk: a file for each, by the instance that it is of.

```
schedules/<instance>.json    a ScheduleRecord
```

Beside the records of instances, not in their folders: those belong to a VMM, which may be jailed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ramet.core.errors import Broken, RametError
from ramet.core.ids import InstanceId
from ramet.core.snapshot_schedule import ScheduleRecord
from ramet.store.paths import PART_SUFFIX, sync_folder, write_whole

_SUFFIX: Final = ".json"


class ScheduleUnreadable(Broken):
    """The file of a snapshot schedule is damaged."""

    code = "snapshot_schedule_unreadable"


class ScheduleUnwritable(Broken):
    """A snapshot schedule cannot be written down, or not be removed."""

    code = "snapshot_schedule_unwritable"


class ScheduleStore:
    """The schedules of a data folder. For the event loop's thread."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self) -> tuple[list[ScheduleRecord], Mapping[InstanceId, RametError]]:
        """Return the schedules that can be read, and of each other instance why not."""
        found, damaged = list[ScheduleRecord](), dict[InstanceId, RametError]()
        for part in self._folder.glob(f"*{PART_SUFFIX}"):
            part.unlink()
        for file in sorted(self._folder.glob(f"*{_SUFFIX}")):
            try:
                found.append(ScheduleRecord.from_json(file.read_text()))
            except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
                damaged[InstanceId(file.stem)] = ScheduleUnreadable(
                    f"{file} cannot be read: {error}", remedy="set the schedule again, or delete it"
                )
        return found, damaged

    def save(self, record: ScheduleRecord) -> None:
        """Write a schedule down. Durable when this returns.

        Raises:
            ScheduleUnwritable: the disk is full; what was there is there.
        """
        try:
            write_whole(self._file(record.instance), record.to_json().encode())
        except OSError as error:
            raise _unwritable(record.instance, "written", error) from error

    def remove(self, instance: InstanceId) -> None:
        """Remove the schedule of an instance, if there is one. Durable when this returns.

        Raises:
            ScheduleUnwritable: the disk refuses; it is still there.
        """
        try:
            self._file(instance).unlink(missing_ok=True)
            sync_folder(self._folder)
        except OSError as error:
            raise _unwritable(instance, "removed", error) from error

    def _file(self, instance: InstanceId) -> Path:
        return self._folder / f"{instance}{_SUFFIX}"


def _unwritable(instance: InstanceId, done: str, error: OSError) -> ScheduleUnwritable:
    return ScheduleUnwritable(
        f"the snapshot schedule of instance {instance} cannot be {done}: {error.strerror}",
        remedy="see that the file system of the data folder has space and can be written",
    )
