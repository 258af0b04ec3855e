"""The control API, as the client uses it and as a clumsy client would."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from ramet.core.errors import RametError
from ramet.pager import (
    BaseUnusable,
    NoSuchSession,
    PagerClient,
    PagerDraining,
    PagerFailed,
    PagerRequestInvalid,
    PagerUnreachable,
    SessionExists,
    SessionPhase,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def base(folder: Path) -> Path:
    path = folder / "base"
    path.write_bytes(bytes(8192))
    return path


async def test_a_session_waits_for_its_vmm_until_it_is_closed(client: PagerClient, base: Path) -> None:
    path = await client.open_session("a", base, 8192)
    assert path.is_socket()
    assert path.stat().st_mode & 0o077 == 0
    (session,) = (await client.statistics()).sessions
    assert (session.id, session.phase, session.vmm_pid) == ("a", SessionPhase.WAITING, None)
    assert not await client.close_session("a")
    assert not path.exists()
    assert (await client.health()).session_count == 0


@pytest.mark.parametrize(
    ("session_id", "path", "size_bytes", "error"),
    [
        ("known", "base", 8192, SessionExists),
        ("../a", "base", 8192, PagerRequestInvalid),
        ("", "base", 8192, PagerRequestInvalid),
        ("a", "base", 8191, PagerRequestInvalid),
        ("a", "base", 0, PagerRequestInvalid),
        ("a", "nowhere", 8192, BaseUnusable),
        ("a", ".", 8192, BaseUnusable),
        ("a", "/dev/zero", 8192, BaseUnusable),
    ],
)
async def test_what_cannot_be_opened_is_refused(
    client: PagerClient, base: Path, session_id: str, path: str, size_bytes: int, error: type[RametError]
) -> None:
    await client.open_session("known", base, 8192)
    with pytest.raises(error):
        await client.open_session(session_id, base.parent / path, size_bytes)
    assert (await client.health()).session_count == 1


async def test_closing_what_is_not_there_is_an_error(client: PagerClient) -> None:
    with pytest.raises(NoSuchSession):
        await client.close_session("a")


async def test_a_draining_pager_takes_no_session(client: PagerClient, base: Path) -> None:
    await client.open_session("a", base, 8192)
    assert await client.drain() == 1
    assert (await client.health()).is_draining
    with pytest.raises(PagerDraining):
        await client.open_session("b", base, 8192)


async def test_requests_on_one_connection_are_answered_in_turn(client: PagerClient) -> None:
    reader, writer = await asyncio.open_unix_connection(str(client.path))
    writer.write(b'{"op":"health"}\nnonsense\n{"op":"close_session","id":"a"}\n{"op":"hea')
    answers = [json.loads(await reader.readline()) for _ in range(3)]
    writer.write(b'lth"}\n')
    answers.append(json.loads(await reader.readline()))
    writer.close()
    await writer.wait_closed()
    assert answers[0] == answers[3]
    assert answers[1]["error"]["code"] == "bad_request"
    assert answers[2]["error"]["code"] == "no_such_session"


async def test_a_request_without_end_closes_its_connection_only(client: PagerClient) -> None:
    reader, writer = await asyncio.open_unix_connection(str(client.path))
    writer.write(b"x" * 100_000)
    with pytest.raises((ConnectionResetError, BrokenPipeError, EOFError)):
        await reader.readexactly(1)
    writer.close()
    assert (await client.health()).session_count == 0


async def test_one_that_never_reads_its_answers_holds_nobody_up(client: PagerClient) -> None:
    _, writer = await asyncio.open_unix_connection(str(client.path))
    for _ in range(200):
        writer.write(b'{"op":"stats"}\n' * 100)
    assert (await client.health()).pid > 0
    writer.transport.abort()
    assert (await client.health()).pid > 0


async def test_connections_beyond_the_limit_are_closed_and_come_again(client: PagerClient) -> None:
    streams = [await asyncio.open_unix_connection(str(client.path)) for _ in range(32)]
    for reader, writer in streams:
        writer.write(b'{"op":"health"}\n')
        assert await reader.readline()
    with pytest.raises(PagerUnreachable):
        await client.health()
    for _, writer in streams:
        writer.close()
        await writer.wait_closed()
    assert os.path.exists(f"/proc/{(await client.health()).pid}")


async def test_nobody_at_the_socket_is_unreachable(folder: Path) -> None:
    with pytest.raises(PagerUnreachable):
        await PagerClient(folder / "none").health()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\n",
        b"[]\n",
        b'{"ok": 1}\n',
        b'{"ok": {}}\n',
        b'{"ok": {"version": 1}}\n',
        b'{"error": {}}\n',
        b'{"error": {"code": "new", "message": "m"}}\n',
        b"x" * (3 * 1024 * 1024),
    ],
)
async def test_an_answer_without_sense_is_a_failure(folder: Path, answer: bytes) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    server = await asyncio.start_unix_server(reply, folder / "s")
    with pytest.raises(PagerFailed):
        await PagerClient(folder / "s").health()
    server.close()
    await server.wait_closed()
