"""How stored memory is compressed, and what of that a request says."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, Self

from ramet.core.errors import Invalid


class CompressionAlgorithm(StrEnum):
    """The algorithms, as the API names them."""

    ZSTD = "zstd"
    LZ4 = "lz4"


LEVELS: Final[Mapping[CompressionAlgorithm, range]] = {
    CompressionAlgorithm.ZSTD: range(1, 20),
    CompressionAlgorithm.LZ4: range(10),
}
"""The levels of each algorithm; the first is the default."""


@dataclass(frozen=True, slots=True)
class Compression:
    """An algorithm, and a level that it has."""

    algorithm: CompressionAlgorithm
    level: int

    @classmethod
    def of(cls, algorithm: str | None = None, level: int | None = None) -> Self:
        """Return what these two ask for, None being the default: zstd, and the algorithm's first level.

        Raises:
            Invalid: there is no such algorithm, or it has no such level.
        """
        try:
            found = CompressionAlgorithm(algorithm or CompressionAlgorithm.ZSTD)
        except ValueError as error:
            remedy = f"use one of {', '.join(CompressionAlgorithm)}"
            raise Invalid(
                f"{algorithm!r:.40} compresses nothing", remedy=remedy, field="algorithm"
            ) from error
        levels = LEVELS[found]
        if level is None:
            level = levels[0]
        if level not in levels:
            raise Invalid(
                f"{found} has no level {level:.40g}",
                remedy=f"use a level from {levels[0]} to {levels[-1]}",
                field="level",
            )
        return cls(found, level)


@dataclass(frozen=True, slots=True)
class CompressionAsk:
    """What a request says: `how` counts if something `is_said`, the server's default if not.

    `delay_s` is the time from when memory is stored to when its compression may begin.
    """

    how: Compression | None = None
    is_said: bool = False
    delay_s: float = 0.0

    def resolve(self, default: Compression | None) -> Compression | None:
        """Return how to compress; None: not at all."""
        return self.how if self.is_said else default


NOT_SAID: Final = CompressionAsk()
"""The server's default, at once."""

CompressionState = Literal["none", "compressing", "compressed", "error"]


@dataclass(frozen=True, slots=True)
class MemoryState:
    """How stored memory lies on the disk. It is `compressing` from when that is asked for until it is done.

    `how`: it is, or is to be, compressed like that; `compressed_bytes` what it takes then; `error` why it is
    not.
    """

    state: CompressionState = "none"
    how: Compression | None = None
    compressed_bytes: int | None = None
    error: str = ""
