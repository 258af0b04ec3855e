"""What a request that may be sent again was, and what it was answered."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it was sent."""

    status: int
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that came with a key: what tells it from others, and its answer if there is one."""

    request: str
    answer: Answer | None
