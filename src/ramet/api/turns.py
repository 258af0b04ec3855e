"""Long answers, made and sent a piece at a time: whoever else has asked does not wait for all of one."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final, TypeVar

import anyio.lowlevel
from pydantic import TypeAdapter
from starlette.responses import StreamingResponse

PER_TURN: Final = 48
"""So many things are shown in one turn of the event loop: a millisecond's work, or two."""

T = TypeVar("T")
Shown = TypeVar("Shown")


async def dump_in_turns(
    adapter: TypeAdapter[tuple[Shown, ...]], items: Iterable[T], show: Callable[[T], Shown]
) -> list[bytes]:
    """Return the JSON array of how each of `items` is shown, in pieces, written out by pydantic itself."""
    pieces, between = [b"["], b""
    left = iter(items)
    while some := tuple(islice(left, PER_TURN)):
        pieces.append(between + adapter.dump_json(tuple(map(show, some)))[1:-1])
        between = b","
        await anyio.lowlevel.checkpoint()
    return [*pieces, b"]"]


class JsonPieces(StreamingResponse):
    """JSON whose whole is there before the first of its pieces is sent."""

    media_type = "application/json"

    def __init__(self, pieces: Sequence[bytes], headers: Mapping[str, str] | None = None) -> None:
        length = {"content-length": str(sum(map(len, pieces)))}
        super().__init__(_one_by_one(pieces), headers={**(headers or {}), **length})


async def _one_by_one(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await anyio.lowlevel.checkpoint()  # As long as a socket takes them, nothing else gives others a turn.
