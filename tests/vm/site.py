"""What the tests ask of a daemon's parts, and of the guests, in as few words as can be."""

import asyncio
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio

from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceSpec, State
from ramet.daemon.wiring import Running
from ramet.effects.performer import SitePerformer
from ramet.effects.site import Rig
from ramet.effects.site import Site as Effects
from ramet.instance.fleet import Fleet
from ramet.instance.fleet_types import ExecCommand, ForkOutcome, InstanceView
from tests.net.namespaces import Namespace
from tests.vm.images import HTTP_PORT, IMAGE

NEAR_ADDRESS = "192.0.2.1"
FAR_ADDRESS = "192.0.2.2"
METADATA_ADDRESS = "169.254.169.254"
GATEWAY = "10.100.0.1"

MEMORY_BYTES = 256 << 20
OVERLAY_BYTES = 1 << 30


@dataclass(frozen=True)
class Result:
    """What a command in a guest left behind."""

    stdout: bytes
    stderr: bytes
    exit_code: int


@dataclass
class Site:
    """A daemon in this process."""

    parts: Running
    image_digest: str
    folder: Path
    far_side: Namespace

    @property
    def fleet(self) -> Fleet:
        return self.parts.fleet

    @property
    def effects(self) -> Effects:
        """The open parts below the fleet, for tests that look behind it."""
        performer = self.fleet._host
        assert isinstance(performer, SitePerformer)
        return performer._site

    def rig(self, name: str) -> Rig:
        return self.effects.rigs[self.id_of(name)]

    def id_of(self, name: str) -> InstanceId:
        return self.fleet.get(name).record.id

    def ip_of(self, name: str) -> str:
        ip = self.fleet.get(name).ip
        assert ip is not None
        return ip

    def spec(self, cmd: Sequence[str] | None = None, digest: str | None = None) -> InstanceSpec:
        return InstanceSpec(
            image=IMAGE,
            image_digest=digest or self.image_digest,
            hypervisor="qemu",
            vcpu_count=1,
            memory_bytes=MEMORY_BYTES,
            overlay_bytes=OVERLAY_BYTES,
            cmd=None if cmd is None else tuple(cmd),
        )

    async def boot(self, name: str) -> InstanceView:
        """Boot the image and wait for its HTTP server."""
        view = await self.fleet.create(name, self.spec())
        assert view.record.state is State.RUNNING, view.record.state_error
        await self.sh(name, "echo memory0 >/dev/shm/state; echo disk0 >/var/state; sync")
        await self.get_state(name)
        return view

    async def run(self, name: str, *argv: str, stdin: bytes = b"", timeout_s: float = 60.0) -> Result:
        """Run a command in a guest, whatever its exit code."""
        command = ExecCommand(argv, timeout_s=timeout_s)
        session = await self.fleet.open_exec(name, command)
        output = {1: bytearray(), 2: bytearray()}
        try:
            async with anyio.create_task_group() as group:

                async def feed() -> None:
                    await session.write(stdin)
                    await session.close_stdin()

                group.start_soon(feed)
                async for stream, data in session.output():
                    output[stream] += data
                end = await session.wait()
                group.cancel_scope.cancel()
        finally:
            await session.aclose()
        return Result(bytes(output[1]), bytes(output[2]), end.exit_code)

    async def sh(self, name: str, script: str, stdin: bytes = b"") -> str:
        """Run a shell script in a guest and return its output; it must succeed."""
        done = await self.run(name, "sh", "-ec", script, stdin=stdin)
        assert done.exit_code == 0, f"{script!r} in {name}: {done}"
        return done.stdout.decode()

    async def wait_for(self, name: str, condition: str) -> None:
        """Wait until the shell command `condition` succeeds in a guest, at most 20 seconds."""
        await self.sh(name, f"n=0; until {condition}; do n=$((n+1)); [ $n -lt 200 ]; sleep 0.1; done")

    async def get_state(self, name: str) -> dict[str, str]:
        """Ask the HTTP server of a guest, at its own address, for what it knows of itself."""
        body = await http_get(self.ip_of(name), "/cgi-bin/state")
        return dict(line.split(" ", 1) for line in body.strip().splitlines())


@dataclass
class Children:
    """Forks made by one test."""

    site: Site
    names: list[str] = field(default_factory=list)

    async def fork(self, source: str, *names: str) -> list[ForkOutcome]:
        """Fork `source` into `names`; all must succeed."""
        self.names.extend(names)
        outcomes = await self.site.fleet.fork(source, names)
        assert [outcome.error for outcome in outcomes] == [None] * len(names)
        return outcomes


async def http_get(ip: str, path: str, port: int = HTTP_PORT) -> str:
    """Return the body at `path`.

    Raises:
        OSError: nobody answers.
    """
    reader, writer = await asyncio.open_connection(ip, port)
    try:
        writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        answer = await reader.read()
    finally:
        writer.close()
    # busybox's httpd ends its own headers with CR LF and leaves those of a CGI program as they are.
    head, _, body = answer.decode().replace("\r", "").partition("\n\n")
    assert head.split()[1:2] == ["200"], answer
    return body


def vmm_pids(folder: Path) -> list[int]:
    """Return the VMMs whose files lie under `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if b"guest=ramet-" in line and os.fsencode(folder) + b"/" in line:
            found.append(int(entry.name))
    return found
