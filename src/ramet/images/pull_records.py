"""What was asked to be pulled, on disk, so that a new daemon goes on with it; never a secret."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Final

from ramet.core.ids import mint_id
from ramet.images.documents import Platform, parse_object, parse_platform, string, string_map
from ramet.images.errors import CatalogCorrupt, InvalidManifest, InvalidPlatform, InvalidReference
from ramet.images.record import sync, write_synced
from ramet.images.reference import Reference, parse_reference

SCHEMA: Final = 1


@dataclass(frozen=True, slots=True)
class PullRecord:
    """One pull that was asked for.

    Attributes:
        labels: key-value pairs for the name; None leaves those it has.
        had_credentials: it came with its own, which are not kept.
    """

    reference: Reference
    platform: Platform
    labels: Mapping[str, str] | None
    had_credentials: bool
    created_at: datetime
    id: str = field(default_factory=mint_id)


class PullRecords:
    """The records in one folder. All methods block.

    Args:
        folder: made if it is missing.
        tmp: on the same file system, emptied by the catalog.
    """

    def __init__(self, folder: Path, tmp: Path) -> None:
        self._folder = folder
        self._tmp = tmp

    def load(self) -> list[PullRecord]:
        """Return all, oldest first.

        Raises:
            CatalogCorrupt: one is not what we wrote.
        """
        self._folder.mkdir(mode=0o700, exist_ok=True)
        found = [_load(file) for file in self._folder.iterdir()]
        return sorted(found, key=lambda record: (record.created_at, record.id))

    def save(self, record: PullRecord) -> None:
        """Write `record`, whole."""
        value = {
            "schema": SCHEMA,
            "reference": str(record.reference),
            "platform": str(record.platform),
            "labels": None if record.labels is None else dict(record.labels),
            "had_credentials": record.had_credentials,
            "created_at": record.created_at.isoformat(),
        }
        scratch = self._tmp / mint_id()
        write_synced(scratch, json.dumps(value, indent=1, sort_keys=True).encode() + b"\n")
        scratch.replace(self._file(record))
        sync(self._folder)

    def remove(self, record: PullRecord) -> None:
        """Forget `record`, which need not be there."""
        self._file(record).unlink(missing_ok=True)
        sync(self._folder)

    def _file(self, record: PullRecord) -> Path:
        return self._folder / f"{record.id}.json"


def _load(file: Path) -> PullRecord:
    try:
        value = parse_object(file.read_bytes(), "record of a pull")
        if value.get("schema") != SCHEMA:
            raise InvalidManifest(f"the record is of another schema than {SCHEMA}")
        labels = value.get("labels")
        return PullRecord(
            parse_reference(string(value.get("reference"), "reference")),
            parse_platform(string(value.get("platform"), "platform")),
            None if labels is None else string_map(labels, "labels"),
            value.get("had_credentials") is not False,
            datetime.fromisoformat(string(value.get("created_at"), "created_at")),
            file.stem,
        )
    except (InvalidManifest, InvalidReference, InvalidPlatform, ValueError) as error:
        raise CatalogCorrupt(f"{file} cannot be read: {error}", remedy=f"remove {file}") from error
