"""What is written beside a stored capture, last of all: a capture exists when its manifest does."""

import json
from dataclasses import asdict, dataclass
from typing import Final, Self

from ramet.core.ids import CaptureId
from ramet.vmm.port import CaptureFormat

SCHEMA: Final = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a stored capture is: by whom it can be loaded, and how large it is.

    `memory_bytes` is the guest's memory, `resident_bytes` what of it takes room; `created_at` Unix seconds.
    """

    id: CaptureId
    format: CaptureFormat
    memory_bytes: int
    resident_bytes: int
    created_at: float

    def to_bytes(self) -> bytes:
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1).encode() + b"\n"

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
        return cls(**raw)
