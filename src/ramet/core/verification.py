"""What came of looking at a snapshot, whether it still is what was stored."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

CHUNK_BYTES: Final = 1 << 20
"""Of what one checksum is made."""


class Part(StrEnum):
    """What a snapshot is made of."""

    MEMORY = "memory"
    DEVICES = "devices"
    DISK = "disk"


class Proof(StrEnum):
    """How far a part was proven to be what it was."""

    CHECKSUMS = "checksums"  # Every byte is that of when its checksums were made.
    READABLE = "readable"  # There was nothing to compare with: its checksums have only just been made.


@dataclass(frozen=True, slots=True)
class CheckedPart:
    """One file, or the disk: `size_bytes` is how much was read of it.

    `damage` says what is wrong with it, and is empty if nothing is; `chunk` is the first of CHUNK_BYTES
    that is not what it was, counted from 0, where that can be told.
    """

    part: Part
    file: str
    size_bytes: int
    proof: Proof
    damage: str = ""
    chunk: int | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """All parts of a snapshot that were looked at."""

    parts: tuple[CheckedPart, ...]

    @property
    def is_whole(self) -> bool:
        return not any(part.damage for part in self.parts)

    @property
    def checksums(self) -> Literal["compared", "made", "none"]:
        """What became of its checksums: `compared` is all of it, or some had to be made, or cannot be.

        They are made only of what can be read to its end.
        """
        without = [part for part in self.parts if part.proof is not Proof.CHECKSUMS]
        if not without:
            return "compared"
        return "none" if any(part.damage for part in without) else "made"
