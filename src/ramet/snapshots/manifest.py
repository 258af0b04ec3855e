"""What is written beside a stored capture, last of all: a capture exists when its manifest does."""

import json
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

from ramet.core.compression import Compression, CompressionAlgorithm
from ramet.core.ids import CaptureId
from ramet.linux.pagemap import PageRuns
from ramet.snapshots.compression import Compressed
from ramet.vmm.port import CaptureFormat

MANIFEST_FILE: Final = "manifest.json"
DEVICES_FILE: Final = "devices"
PACKED_FILE: Final = "memory.packed"
UNPACKED_FOLDER: Final = "unpacked"
SCHEMA: Final = 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """That its memory is to be compressed, not before Unix second `not_before`."""

    how: Compression
    not_before: float

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Read what `asdict` and JSON made of one.

        Raises:
            ValueError, TypeError, KeyError: they did not.
        """
        how = Compression(CompressionAlgorithm(raw["how"]["algorithm"]), raw["how"]["level"])
        return cls(how, float(raw["not_before"]))


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a stored capture is: by whom it can be loaded, and how large it is.

    `memory_bytes` is the guest's memory, `resident_bytes` what of it takes room; `created_at` Unix seconds.
    `changes` says which pages of its memory are to be taken from the file of changes; None: there is none.
    `compressed` is there once its memory is there compressed, whether or not the other is there, too.
    """

    id: CaptureId
    format: CaptureFormat
    memory_bytes: int
    resident_bytes: int
    created_at: float
    wanted: Wanted | None = None
    compressed: Compressed | None = None
    changes: PageRuns | None = None

    def to_bytes(self) -> bytes:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError, TypeError, KeyError: it was not.
        """
        raw = json.loads(data)
        if raw.pop("schema") != SCHEMA:
            raise ValueError(f"it is of another schema than {SCHEMA}")
        raw["format"] = CaptureFormat(**raw["format"])
        for name, kind in (("wanted", Wanted), ("compressed", Compressed)):
            if raw.get(name) is not None:
                raw[name] = kind.from_dict(raw[name])
        if raw.get("changes") is not None:
            raw["changes"] = tuple((int(offset), int(length)) for offset, length in raw["changes"])
        return cls(**raw)
