"""Pools of children made ahead of their fork, as the API shows them and as requests ask for them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

# Read by pydantic where the API parses requests; a plain mapping, so that nobody else needs pydantic.
_FORBID_UNKNOWN: Final[Mapping[str, Any]] = {"extra": "forbid"}


@dataclass(frozen=True, slots=True)
class ForkPool:
    """The children of an instance or a snapshot that are made ahead of their fork (additive).

    `size` is what was asked for, `waiting` how many wait; of the forks since the server
    started, `taken` found one and `missed` did not. `resting`: none wait, because nobody forks it. `error`:
    why the last could not be made, null if it could.
    """

    size: int
    waiting: int
    taken: int
    missed: int
    resting: bool
    error: str | None = None


@dataclass(frozen=True, slots=True)
class SetForkPool:
    """The body of `PUT /instances/{id}/fork_pool` and `PUT /snapshots/{id}/fork_pool` (additive).

    `size` is how many children are to be made ahead; 0: none.
    """

    size: int

    __pydantic_config__: ClassVar[Mapping[str, Any]] = _FORBID_UNKNOWN
