"""The agent behind a vsock: its port is asked for until it is open, and no byte of the guest's is taken."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from ramet.guest.dial import dial
from ramet.guest.errors import GuestUnreachable
from ramet.wire.vsock import AGENT_PORT

pytestmark = pytest.mark.anyio

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Listen = Callable[[Serve], Awaitable[Path]]


@pytest.fixture
async def listen(tmp_path: Path) -> AsyncIterator[Listen]:
    servers: list[asyncio.AbstractServer] = []

    async def start(serve: Serve) -> Path:
        servers.append(await asyncio.start_unix_server(serve, tmp_path / "a.vsock"))
        return tmp_path / "a.vsock"

    yield start
    for server in servers:
        server.close()


async def test_the_port_is_asked_for_and_what_follows_is_the_guests(listen: Listen) -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readline())
        writer.write(b"OK 1073741824\nhello")
        writer.close()

    client = await dial(await listen(serve))
    reader, writer = await asyncio.open_unix_connection(sock=client)
    assert await reader.read() == b"hello"
    writer.close()
    assert asked == [b"CONNECT %d\n" % AGENT_PORT]


@pytest.mark.parametrize("answer", [b"", b"NO\n", b"x" * 100])
async def test_as_long_as_nobody_listens_in_the_guest_it_is_asked_again(
    listen: Listen, answer: bytes
) -> None:
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        await reader.readline()
        writer.write(b"OK 1\n" if count == 3 else answer)
        writer.close()

    (await dial(await listen(serve))).close()
    assert count == 3


async def test_a_socket_that_nobody_has_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(GuestUnreachable):
        await dial(tmp_path / "a.vsock")
