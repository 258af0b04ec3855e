"""What the platform did with an instance, as lines beside its other logs.

Each line is a time (UTC, milliseconds), what happened, and facts. It is for people who ask what happened to
an instance; nothing is ever decided by it, so an instance does not fail because a line could not be written.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog

from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord, State
from ramet.linux.plain_file import open_plain

OPERATIONS_FILE: Final = "operations.log"

log = structlog.get_logger(__name__)


class Operations:
    """Writes the operations logs of all instances under `instances`."""

    def __init__(self, instances: Path) -> None:
        self._instances = instances
        self._told: dict[InstanceId, InstanceRecord] = {}

    def tell(self, record: InstanceRecord) -> None:
        """Write what is new about an instance since it was told last."""
        former = self._told.get(record.id)
        self._told[record.id] = record
        if former is None:
            self._tell_first(record)
        elif record.is_deleting and not former.is_deleting:
            self.note(record.id, "being deleted")
        elif record.is_deleting:
            return  # Its folder is going.
        elif record.state is not former.state or record.state_error != former.state_error:
            self.note(record.id, str(record.state), **_facts(record))

    def forget(self, instance: InstanceId) -> None:
        """Forget an instance that is gone."""
        self._told.pop(instance, None)

    def note(self, instance: InstanceId, what: str, **facts: object) -> None:
        """Write one line."""
        self._write(instance, _line(what, facts))

    def _write(self, instance: InstanceId, lines: str) -> None:
        try:
            path = self._instances / instance / OPERATIONS_FILE
            with open(open_plain(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666), "a") as file:
                file.write(lines)
        except FileNotFoundError:
            return  # What failed to be made has no folder any more.
        except OSError as error:
            log.warning("operation_not_noted", instance=instance, lines=lines, error=str(error))

    def _tell_first(self, record: InstanceRecord) -> None:
        if (self._instances / record.id / OPERATIONS_FILE).exists():
            self.note(record.id, "daemon restarted", state=record.state, **_facts(record))
            return
        made = {"name": record.name, "image": record.spec.image, "forked_from": record.identity.parent}
        self._write(record.id, _line("created", made) + _line(str(record.state), _facts(record)))


def _line(what: str, facts: Mapping[str, object]) -> str:
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
    told = "".join(f" {name}={_plain(value)}" for name, value in facts.items() if value not in (None, ""))
    return f"{stamp} {what}{told}\n"


def _facts(record: InstanceRecord) -> dict[str, object]:
    facts: dict[str, object] = {}
    if record.runtime is not None:
        facts["pid"] = record.runtime.pid
    if record.state is State.STOPPED and record.exit is not None:
        facts |= {"code": record.exit.code, "signal": record.exit.signal, "message": record.exit.message}
    return facts | {"error": record.state_error}


def _plain(value: object) -> str:
    text = " ".join(str(value).split())
    return f'"{text}"' if " " in text else text
