"""What a guest answers to our checks, and that these are nobody who is connected to it; TCP is real."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import anyio
import pytest

from ramet.core.errors import Broken
from ramet.core.health import ExecProbe, HealthCheck, HttpProbe, Probe, TcpProbe
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceIdentity, InstanceRecord, InstanceSpec, State
from ramet.effects.probes import STATUS_LINE_BYTES_MAX, Probes
from ramet.instance.fleet_types import ExecCommand, ExecEnd, ExecSession
from ramet.net.bridge import BridgeConfig
from ramet.net.flows import Flows
from ramet.net.network import Network
from ramet.net.slots import Endpoint
from tests.net import test_flows
from tests.net.test_flows import GATEWAY, PORT, Watched, connect
from tests.waiting import until

pytestmark = [pytest.mark.anyio, pytest.mark.netns]
watched = test_flows.watched
RECORD = InstanceRecord(
    InstanceSpec("i", "d", "fake", 1, 1, 1),
    InstanceIdentity(InstanceId("web"), "web", 2, "0" * 32, 0.0),
    State.RUNNING,
)


@dataclass
class OneGuest:
    """As much of a network as a check needs."""

    there: Endpoint
    flows: Flows
    config: BridgeConfig = field(default_factory=BridgeConfig)

    def endpoint(self, instance: InstanceId) -> Endpoint:
        assert instance == RECORD.id
        return self.there


class Command:
    """A command that writes and ends."""

    def __init__(self, end: ExecEnd, *chunks: bytes) -> None:
        self.end, self.chunks, self.is_closed = end, chunks, False

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        for chunk in self.chunks:
            yield 1, chunk

    async def wait(self) -> ExecEnd:
        return self.end

    async def aclose(self) -> None:
        self.is_closed = True


async def no_exec(instance: InstanceId, command: ExecCommand) -> ExecSession:
    raise Broken("the guest does not answer")


async def ask(watched: Watched, probe: Probe, timeout_s: float = 20.0) -> str:
    network = cast(Network, OneGuest(watched.guest.endpoint, watched.flows))
    check = HealthCheck("", probe, 10.0, timeout_s, 0.0, 1, 1)
    return await Probes(network, no_exec, {}).probe(RECORD, check)


@asynccontextmanager
async def answering(
    watched: Watched, answer: bytes, tls: ssl.SSLContext | None = None
) -> AsyncIterator[list[bytes]]:
    """Answer each request with these bytes; the requests come into the list."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            await writer.drain()
        except (OSError, EOFError):
            asked.append(b"")
        writer.close()

    async with await asyncio.start_server(serve, sock=watched.listen(), ssl=tls):
        yield asked


async def test_a_port_accepts_or_does_not(watched: Watched) -> None:
    assert await ask(watched, TcpProbe(PORT)) == "Connection refused"
    with watched.listen():
        assert await ask(watched, TcpProbe(PORT)) == ""


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", ""),
        (b"HTTP/1.0 200\r\n\r\n" + b"x" * 1_000_000, ""),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "answered 503, not 200"),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", "answered 302, not 200"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "the answer is not of HTTP"),
        (b"HTTP/1.1 OK\r\n", "the answer is not of HTTP"),
        (b"\xff\xfe\r\n", "the answer is not of HTTP"),
        (b"", "the connection was closed without an answer"),
        (b"HTTP/1.1 200 OK", "the connection was closed without an answer"),
        (b"x" * (STATUS_LINE_BYTES_MAX * 3), "the answer is not of HTTP"),
    ],
)
async def test_an_answer_has_the_status_that_is_expected_or_has_not(
    watched: Watched, answer: bytes, error: str
) -> None:
    async with answering(watched, answer) as asked:
        assert await ask(watched, HttpProbe(PORT, "/up?all=1")) == error
    assert asked[0].startswith(b"GET /up?all=1 HTTP/1.1\r\nHost: 10.100.0.2:8080\r\n")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a key and a certificate of nobody's."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=nobody"
    subprocess.run(
        [*command.split(), "-keyout", path, "-out", f"{path}.crt"], check=True, capture_output=True
    )
    path.write_bytes(path.read_bytes() + Path(f"{path}.crt").read_bytes())
    return path


async def test_any_certificate_will_do(watched: Watched, certificate: Path) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    async with answering(watched, b"HTTP/1.1 204 No Content\r\n\r\n", tls):
        assert await ask(watched, HttpProbe(PORT, "/", "https", 204)) == ""
        assert await ask(watched, HttpProbe(PORT, "/", "https")) == "answered 204, not 200"


async def test_one_that_never_answers_is_given_up_without_a_trace(watched: Watched) -> None:
    with watched.listen() as server:
        for probe in (HttpProbe(PORT), HttpProbe(PORT, scheme="https")):
            with anyio.move_on_after(0.1) as waited:
                await ask(watched, probe)
            assert waited.cancelled_caught
            accepted, _ = await asyncio.get_running_loop().sock_accept(server)
            accepted.close()


async def test_nobody_is_connected_where_only_we_ask(watched: Watched) -> None:
    with watched.listen() as server:
        for probe in (TcpProbe(PORT), TcpProbe(PORT + 1)):
            await ask(watched, probe)
        ends = await connect(server, watched.ip)  # What was told of us before was told by then.
        accepted, _ = await asyncio.get_running_loop().sock_accept(server)
        await until(lambda: len(watched.inbound) == 1)
        assert sorted(watched.changed) == [GATEWAY, watched.ip]  # Each once: of this connection.
        (one,) = watched.inbound
        assert one.client[1] == ends[0].getsockname()[1]
        watched.flows._is_behind.set()  # Nor when all are listed.
        await until(lambda: not watched.flows._is_behind.is_set())
        for end in (accepted, *ends):
            end.close()
        await until(lambda: not watched.inbound)
        await until(lambda: not watched.flows._ours_ended)
    assert not watched.flows._ours


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (Command(ExecEnd(0, None, timed_out=False), b"noise"), ""),
        (Command(ExecEnd(3, None, timed_out=False)), "exited with 3"),
        (Command(ExecEnd(None, 9, timed_out=False), b"a\n", b"b\n"), "exited with 137: a\nb"),
        (Command(ExecEnd(None, 9, timed_out=True)), "did not end within 7 s"),
        (Command(ExecEnd(1, None, timed_out=False), b"x" * 9999), "exited with 1: " + "x" * 200),
    ],
)
async def test_a_command_exits_with_zero_or_does_not(command: Command, error: str) -> None:
    asked: list[ExecCommand] = []

    async def open_exec(instance: InstanceId, wanted: ExecCommand) -> ExecSession:
        asked.append(wanted)
        return cast(ExecSession, command)

    check = HealthCheck("exec", ExecProbe(("check", "-v"), "/srv"), 10.0, 7.0, 0.0, 1, 1)
    network = cast(Network, None)
    assert await Probes(network, open_exec, {}).probe(RECORD, check) == error
    assert command.is_closed
    (wanted,) = asked
    assert (wanted.argv, wanted.cwd, wanted.timeout_s, wanted.is_ours) == (("check", "-v"), "/srv", 7.0, True)
    assert await Probes(network, no_exec, {}).probe(RECORD, check) == "the guest does not answer"
