"""Asks a guest once whether its workload does well: over its network, or by a command in it.

Nothing of it counts as somebody being connected, or as an open command: a guest that only we ask is idle.
"""

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final

from ramet.core.errors import RametError
from ramet.core.health import ExecProbe, HealthCheck, HttpProbe, TcpProbe
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceRecord
from ramet.effects.site import Rig
from ramet.instance.fleet_types import ExecCommand, ExecSession
from ramet.net.network import Network

STATUS_LINE_BYTES_MAX: Final = 4096
OUTPUT_TOLD_BYTES: Final = 200
"""How much of the end of a failed command's output is told."""

OpenExec = Callable[[InstanceId, ExecCommand], Awaitable[ExecSession]]


class Probes:
    """Asks the guests of `network`, whose commands are started by `open_exec`; `rigs` are those that run."""

    def __init__(self, network: Network, open_exec: OpenExec, rigs: Mapping[InstanceId, Rig]) -> None:
        self._network, self._open_exec, self._rigs = network, open_exec, rigs
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._tls.check_hostname = False  # Nobody has a certificate for a guest's address.
        self._tls.verify_mode = ssl.CERT_NONE

    async def probe(self, record: InstanceRecord, check: HealthCheck) -> str:
        """Return why the check failed; empty: it did not. Takes as long as the guest does."""
        try:
            match check.probe:
                case TcpProbe(port):
                    async with self._connected(record.id, port):
                        return ""
                case HttpProbe():
                    return await self._ask(record.id, check.probe)
                case ExecProbe():
                    return await self._run(record.id, check)
        except EOFError:
            return "the connection was closed without an answer"
        except asyncio.LimitOverrunError:
            return "the answer is not of HTTP"
        except ssl.SSLError as error:
            return f"TLS failed: {error.reason or error}"
        except OSError as error:
            return os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
        except RametError as error:
            return str(error)

    def stood_still_s(self, instance: InstanceId) -> float:
        """Return for how long the workload of an instance was frozen in this run, up to now."""
        rig = self._rigs.get(instance)
        return 0.0 if rig is None else rig.still.total_s()

    @asynccontextmanager
    async def _connected(self, instance: InstanceId, port: int) -> AsyncIterator[socket.socket]:
        server = self._network.endpoint(instance).ip
        host = self._network.config.gateway.ip
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as client:
            client.setblocking(False)
            client.bind((str(host), 0))
            with self._network.flows.ours((host, client.getsockname()[1]), (server, port)):
                await asyncio.get_running_loop().sock_connect(client, (str(server), port))
                yield client

    async def _ask(self, instance: InstanceId, probe: HttpProbe) -> str:
        async with self._connected(instance, probe.port) as client:
            host = f"{self._network.endpoint(instance).ip}:{probe.port}"
            tls = self._tls if probe.scheme == "https" else None
            reader, writer = await asyncio.open_connection(
                sock=client,
                ssl=tls,
                server_hostname=None if tls is None else "",
                limit=STATUS_LINE_BYTES_MAX,
            )
            try:
                lines = (
                    f"GET {probe.path} HTTP/1.1",
                    f"Host: {host}",
                    "User-Agent: ramet",
                    "Connection: close",
                )
                writer.write("\r\n".join((*lines, "", "")).encode())
                await writer.drain()
                version, _, rest = (await reader.readuntil(b"\n")).decode(errors="replace").partition(" ")
            finally:
                writer.transport.abort()  # The socket is ours to close, and nobody may wait for it then.
        status = rest.strip()[:3]
        if not version.startswith("HTTP/") or not status.isdecimal():
            return "the answer is not of HTTP"
        wanted = probe.expected_status
        return "" if int(status) == wanted else f"answered {status}, not {wanted}"

    async def _run(self, instance: InstanceId, check: HealthCheck) -> str:
        assert isinstance(check.probe, ExecProbe)
        command = ExecCommand(
            check.probe.argv,
            cwd=check.probe.cwd,
            timeout_s=check.timeout_s,
            has_stdin=False,
            is_ours=True,
        )
        session = await self._open_exec(instance, command)
        try:
            told = b""
            async for _, chunk in session.output():
                told = (told + chunk)[-OUTPUT_TOLD_BYTES:]
            end = await session.wait()
        finally:
            await session.aclose()
        if end.timed_out:
            return f"did not end within {check.timeout_s:g} s"
        if end.exit_code == 0:
            return ""
        text = told.decode(errors="replace").strip()
        return f"exited with {end.exit_code}" + (f": {text}" if text else "")
