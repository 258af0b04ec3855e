"""Whatever is at the other end of its socket, a call of a VMM's API ends, and as what it is."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from ramet.linux.process import HeldProcess
from ramet.vmm.port import VmmFailed, VmmSilent
from ramet.vmm.rest import Api, Refusal

pytestmark = pytest.mark.anyio

Answer = Callable[[bytes], Awaitable[Api]]


@pytest.fixture
async def answering(tmp_path: Path) -> AsyncIterator[Answer]:
    """Return what starts a server that answers every request with the same bytes and hangs up."""
    servers: list[asyncio.AbstractServer] = []

    async def start(answer: bytes) -> Api:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()

        servers.append(await asyncio.start_unix_server(serve, tmp_path / "api.sock"))
        return Api(tmp_path, "api.sock", 30.0)

    yield start
    for server in servers:
        server.close()


def http(status: int, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, size, body)


async def test_an_answer_is_what_it_says(answering: Answer) -> None:
    api = await answering(http(200, b'{"state": "Running"}'))
    assert await api.get("/") == {"state": "Running"}
    assert await api.get_text("/", "state") == "Running"


async def test_an_answer_without_a_body_is_enough_for_a_put(answering: Answer) -> None:
    await (await answering(b"HTTP/1.1 204 \r\nServer: x\r\n\r\n")).put("/entropy", {})


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"SSH-2.0 200 x\r\n\r\n",
        b"HTTP/1.1 many OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: some\r\n\r\n{}",
        b"HTTP/1.1 \xff OK\r\n\r\n",
        b"x" * (2 << 20),
        http(200, b"{}", -1),
        http(200, b"{}", 3),
        http(200, b"{}", 1 << 40),
        http(200, b"nonsense"),
        http(200, b"[]"),
        http(200, b'{"state": 1}'),
    ],
)
async def test_an_answer_without_sense_is_a_failure(answering: Answer, answer: bytes) -> None:
    api = await answering(answer)
    with pytest.raises(VmmFailed):
        await api.get_text("/", "state")


@pytest.mark.parametrize(
    ("body", "reason"),
    [(b'{"fault_message": "no such drive"}', "no such drive"), (b"oops", "oops"), (b"", "without a reason")],
)
async def test_a_refusal_has_its_reason(answering: Answer, body: bytes, reason: str) -> None:
    api = await answering(http(400, body))
    with pytest.raises(Refusal, match=f"PUT /drives/a: .*{reason}"):
        await api.put("/drives/a", {})


async def test_one_that_never_answers_is_silent(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "api.sock"))
        listener.listen(0)
        for _ in range(3):  # More than may wait to be accepted.
            with pytest.raises(VmmSilent):
                await Api(tmp_path, "api.sock", 0.0).put("/entropy", {})


async def test_nobody_at_the_socket_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(VmmFailed):
        await Api(tmp_path, "api.sock", 30.0).get("/")


async def test_a_folder_whose_path_is_longer_than_a_sockets_may_be(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    here = os.open(folder, os.O_PATH)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(http(200, b"{}"))
        writer.close()

    server = await asyncio.start_unix_server(serve, f"/proc/self/fd/{here}/api.sock")
    assert await Api(folder, "api.sock", 30.0).get("/") == {}
    server.close()
    os.close(here)


@pytest.mark.parametrize("script", ["exit 1", "touch api.sock"])
async def test_one_that_ends_before_it_listens_is_not_waited_for(tmp_path: Path, script: str) -> None:
    process = HeldProcess.start(["/bin/sh", "-c", script], output=tmp_path / "log", cwd=tmp_path)
    with pytest.raises(VmmFailed, match=r"ended|reached"):
        await Api(tmp_path, "api.sock", 30.0).wait_listening(process, 30.0)
    await process.wait_exited()
