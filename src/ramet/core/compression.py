"""How stored memory is compressed, and what of that a request says."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final, Literal, Self

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


COMPRESSION_DELAY_S_MAX: Final = 365 * 86_400.0


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
    """What a request or an instance says: `how` counts if something `is_said`, None being "not at all".

    `delay_s` is the time from when the memory of a sleeper is stored to when its compression may begin; None
    is "not said".
    """

    how: Compression | None = None
    is_said: bool = False
    delay_s: float | None = None

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Read what `asdict` and JSON made of one.

        Raises:
            ValueError, TypeError, KeyError: they did not.
        """
        how = raw["how"]
        if how is not None:
            how = Compression(CompressionAlgorithm(how["algorithm"]), how["level"])
        return cls(how, raw["is_said"], raw["delay_s"])

    def over(self, other: Self) -> Self:
        """Return what counts if this is asked first, and `other` where it says nothing."""
        said = self if self.is_said else other
        delay_s = other.delay_s if self.delay_s is None else self.delay_s
        return replace(said, delay_s=delay_s)

    def resolve(self, default: Compression | None) -> Compression | None:
        """Return how to compress; None: not at all."""
        return self.how if self.is_said else default


NOT_SAID: Final = CompressionAsk()
"""What is asked next counts; at last the server's default, at once."""

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
