"""Something that not every version of a VMM has."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Feature:
    """What it is called, since which version (major, minor) it is there, and what it is for."""

    name: str
    since: tuple[int, int]
    use: str
