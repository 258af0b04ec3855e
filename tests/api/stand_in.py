"""A fleet and a catalog that live in memory, and a server over them: what tests of the API stand on.

They keep the promises of the real ones (states, errors, order) and run no VM. Commands in a guest are a
handful of names with behaviour, see `stand_in_command`.
"""

import asyncio
import hashlib
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import anyio
import jwt

from ramet.admission.admission import Admission
from ramet.admission.demand import Resource
from ramet.admission.ledger import Limit
from ramet.api import HostFacts, HttpServer, KeptAnswers, Parts, RuntimeFacts, TokenAuth, create_app
from ramet.api.facts import runtime_features
from ramet.api.peers import PeerAuth
from ramet.core.compression import NOT_SAID, CompressionAsk
from ramet.core.errors import Broken, Exhausted
from ramet.core.ids import CaptureId, InstanceId, LayerId
from ramet.core.spec import Exit, InstanceIdentity, InstanceRecord, InstanceSpec, SpecChanges, State
from ramet.instance import remedies
from ramet.instance.events import AttachAsked, DetachAsked
from ramet.instance.fleet_types import (
    ExecCommand,
    ExecSession,
    ForkOutcome,
    InstanceAmbiguous,
    InstanceNotFound,
    InstanceView,
    NameTaken,
    PathStat,
    WaitOutcome,
    WrongState,
)
from ramet.instance.held_exec import HeldExecs
from ramet.instance.register import Register
from ramet.instance.transitions import step
from ramet.store.answers import AnswerStore
from tests.api.stand_in_command import GuestCommand
from tests.api.stand_in_files import StandInFiles
from tests.api.stand_in_idle import StandInIdle
from tests.api.stand_in_images import StandInCatalog
from tests.api.stand_in_reclaims import StandInReclaims
from tests.api.stand_in_resources import StandInResources
from tests.api.stand_in_schedules import StandInSchedules
from tests.api.stand_in_snapshots import StandInSnapshots
from tests.api.stand_in_volumes import StandInVolumes

READER_UID = 65_533
"""A user that the unix socket lets in, to read instances."""
SECRET = "a secret that is long enough for tests only"
FEATURES = runtime_features(limits_disks=True)
RUNTIMES = (RuntimeFacts("qemu", True, FEATURES), RuntimeFacts("qemu-microvm", True, FEATURES))
FACTS = HostFacts("0.1.0", "qemu", RUNTIMES, "10.100.0.1", "10.100.0.0/16")
INSTANCE_COUNT_MAX = 1200


def token(*permissions: str, secret: str = SECRET, lifetime_s: float = 600) -> str:
    """Return a token; without permissions it allows everything."""
    claims: dict[str, object] = {"sub": "tester", "exp": time.time() + lifetime_s}
    if permissions:
        claims["permissions"] = list(permissions)
    return jwt.encode(claims, secret, algorithm="HS256")


@dataclass
class StandInFleet:
    """Instances in memory.

    `log` is every instance's, `following` what comes behind it; `commands` all that was run; `failing` the
    names that cannot be made; `files` the root of every guest; `degraded` why none is limited as asked;
    `limits` what instances are admitted to; `balloons` what guests were asked to give back;
    `compression` what the last standby said.
    """

    log: list[str] = field(default_factory=lambda: [f"line {number}" for number in range(200)])
    following: list[str] = field(default_factory=list)
    commands: list[GuestCommand] = field(default_factory=list)
    failing: set[str] = field(default_factory=set)
    files: StandInFiles = field(default_factory=StandInFiles)
    degraded: str | None = None
    compression: CompressionAsk | None = None
    limits: tuple[Limit, ...] = (
        Limit(Resource.CPU, 2, 1000.0),
        Limit(Resource.MEMORY, 2 << 40, source="configured"),
        Limit(Resource.DISK, 100 << 40, 1.0),
    )
    minted_count: int = 0
    balloons: dict[InstanceId, int] = field(default_factory=dict)
    _records: dict[InstanceId, InstanceRecord] = field(default_factory=dict)

    def mint_id(self) -> str:
        """Return an id that was never there: the same ones in each run, so that one can be had again."""
        self.minted_count += 1
        return "i" + hashlib.sha256(str(self.minted_count).encode()).hexdigest()[:23]

    def put(
        self, name: str, state: State = State.RUNNING, spec: InstanceSpec | None = None
    ) -> InstanceRecord:
        """Have an instance called `name` from now on."""
        made_at = 1_700_000_000.5 + len(self._records) * 1e-6  # Told apart by it, and shown as one second.
        identity = InstanceIdentity(InstanceId(self.mint_id()), name, 7, "0" * 32, made_at)
        spec = spec or InstanceSpec("img", "sha256:" + "0" * 64, "qemu", 2, 1 << 30, 10 << 30)
        layer, capture = LayerId("layer"), CaptureId("capture") if state is State.STANDBY else None
        record = InstanceRecord(
            spec, identity, state, started_at=1_700_000_001.0, layer=layer, capture=capture
        )
        self._records[record.id] = record
        return record

    def set(self, name: str, state: State, exit: Exit | None = None) -> None:
        record = self.get(name).record
        capture = CaptureId("capture") if state is State.STANDBY else None
        self._records[record.id] = replace(record, state=state, exit=exit, capture=capture)

    def get(self, ref: str) -> InstanceView:
        named = [record for record in self._records.values() if record.name == ref]
        found = named or [record for record in self._records.values() if record.id.startswith(ref)]
        if not found:
            raise InstanceNotFound(f"there is no instance {ref}", remedy="ramet ps -a shows all", ref=ref)
        if len(found) > 1:
            raise InstanceAmbiguous(f"{ref} begins {len(found)} ids")
        record = found[0]
        has_network = record.spec.has_network
        ip = "10.100.0.7" if has_network else None
        return InstanceView(record, ip, "02:00:00:00:00:07", self.degraded)

    def list(self) -> Sequence[InstanceView]:
        return [self.get(record.id) for record in self._records.values()]

    def find(
        self,
        *,
        state: State | None = None,
        tags: Mapping[str, str] | None = None,
        after: tuple[float, str] | None = None,
    ) -> Iterator[InstanceView]:
        register = Register()
        for record in self._records.values():
            register.add(record)
        return (self.get(one) for _, one in register.find(state=state, tags=tags, after=after))

    async def create(self, name: str, spec: InstanceSpec) -> InstanceView:
        self._check(name)
        admission, record = self.admission(), self.put(name, State.RUNNING, spec)
        try:
            with admission.changing(record):
                return self.get(record.id)
        except Exhausted:
            await self.delete(record.id)
            raise

    def admission(self) -> Admission:
        """Return what the instances hold now."""
        admission = Admission(self.limits)
        for record in self._records.values():
            admission.take_up(record)
        return admission

    async def start(
        self, ref: str, *, entrypoint: tuple[str, ...] | None = None, cmd: tuple[str, ...] | None = None
    ) -> InstanceView:
        record = self.get(ref).record
        if record.state is not State.STOPPED:
            raise WrongState(f"{record.name} is {record.state}")
        spec = replace(
            record.spec,
            entrypoint=record.spec.entrypoint if entrypoint is None else entrypoint,
            cmd=record.spec.cmd if cmd is None else cmd,
        )
        self._records[record.id] = replace(record, spec=spec, exit=None)
        self.set(record.name, State.RUNNING)
        return self.get(ref)

    async def stop(self, ref: str) -> InstanceView:
        record = self.get(ref).record
        if record.state not in (State.RUNNING, State.INITIALIZING):
            raise WrongState(f"{record.name} is {record.state}")
        self.set(record.name, State.STOPPED, Exit(None, 15))
        return self.get(ref)

    async def delete(self, ref: str) -> None:
        del self._records[self.get(ref).record.id]

    async def wait(self, ref: str, state: State, timeout_s: float) -> WaitOutcome:
        found = self.get(ref).record.state
        return WaitOutcome(found, "", timed_out=found is not state)

    async def set_fork_pool(self, ref: str, size: int) -> InstanceView:
        record = self.get(ref).record
        self._records[record.id] = replace(record, spec=replace(record.spec, fork_pool=size))
        return self.get(ref)

    async def update(self, ref: str, changes: SpecChanges) -> InstanceView:
        record = self.get(ref).record
        self._records[record.id] = replace(record, spec=replace(record.spec, **changes))
        return self.get(ref)

    async def change_volumes(self, ref: str, asked: AttachAsked | DetachAsked) -> InstanceView:
        record, _ = step(self.get(ref).record, asked)
        self._records[record.id] = record
        return self.get(ref)

    async def standby(self, ref: str, compression: CompressionAsk = NOT_SAID) -> InstanceView:
        record = self.get(ref).record
        if record.state is not State.RUNNING:
            raise WrongState(f"{record.name} is {record.state}", remedy=remedies.to_run(record))
        self.set(record.name, State.STANDBY)
        self.compression = compression
        return self.get(ref)

    async def restore(self, ref: str) -> InstanceView:
        record = self.get(ref).record
        if record.state is not State.STANDBY:
            raise WrongState(f"{record.name} is {record.state}", remedy=remedies.to_restore(record))
        self.set(record.name, State.RUNNING)
        return self.get(ref)

    async def fork(
        self, ref: str, names: Sequence[str], *, target: State | None = None
    ) -> Sequence[ForkOutcome]:
        source = self.get(ref).record
        return self.copy(source.spec, source.id, names, target or source.state)

    def copy(
        self, spec: InstanceSpec, source: InstanceId, names: Sequence[str], state: State
    ) -> Sequence[ForkOutcome]:
        outcomes = []
        for name in names:
            try:
                self._check(name)
            except (NameTaken, Exhausted, Broken) as error:
                outcomes.append(ForkOutcome(name, None, error))
                continue
            child = self.put(name, state, spec.for_fork())
            child = replace(child, identity=replace(child.identity, parent=source))
            self._records[child.id] = child
            outcomes.append(
                ForkOutcome(
                    name,
                    self.get(name),
                    None,
                    {"capture": 12.5, "source_pause": 2.0, "since_capture": 60.0, "total": 80.0},
                )
            )
        return outcomes

    async def open_exec(self, ref: str, command: ExecCommand) -> ExecSession:
        self.get(ref)
        if command.cwd == "/nowhere":
            raise Broken("the guest has no directory /nowhere", remedy="choose another")
        self.commands.append(GuestCommand(command))
        return self.commands[-1]

    async def stat_path(self, ref: str, path: str, *, follow_links: bool) -> PathStat:
        self.get(ref)
        return self.files.stat(path, follow_links=follow_links)

    def open_archive(
        self, ref: str, path: str, *, follow_links: bool
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        self.get(ref)
        return self.files.read(path, follow_links=follow_links)

    async def put_archive(
        self, ref: str, path: str, chunks: AsyncIterator[bytes], *, keep_owner: bool
    ) -> None:
        self.get(ref)
        await self.files.write(path, chunks, keep_owner=keep_owner)

    async def logs(self, ref: str, *, source: str, tail: int, follow: bool) -> AsyncIterator[str]:
        for line in self.log[len(self.log) - tail :] if tail else []:
            yield f"{source}: {line}" if source != "app" else line
        while follow:
            while self.following:
                yield self.following.pop(0)
            await anyio.sleep(0.01)

    def _check(self, name: str) -> None:
        if any(record.name == name for record in self._records.values()):
            raise NameTaken(f"there is an instance called {name}", remedy="choose another name", name=name)
        if len(self._records) >= INSTANCE_COUNT_MAX:
            raise Exhausted("no slot is free", remedy="delete an instance")
        if name in self.failing:
            raise Broken("the VMM did not start")


@dataclass(frozen=True)
class Served:
    """A server under way: `socket` without tokens, `url` with."""

    fleet: StandInFleet
    catalog: StandInCatalog
    snapshots: StandInSnapshots
    schedules: StandInSchedules
    volumes: StandInVolumes
    socket: Path
    url: str

    def reset(self) -> None:
        """Forget what the test before left behind."""
        self.fleet.files.remove()
        self.fleet.__init__()  # type: ignore[misc]  # In place: the server holds on to it.
        self.catalog.__init__()  # type: ignore[misc]
        self.catalog.put("docker.io/library/alpine:latest")
        self.snapshots.records.clear()
        self.volumes.__init__(self.fleet)  # type: ignore[misc]
        self.snapshots.filling, self.snapshots.breaks = b"", False
        self.schedules.reset()

    @property
    def unix_url(self) -> str:
        return f"unix://{self.socket}"


def stand_in_parts(
    fleet: StandInFleet,
    catalog: StandInCatalog,
    snapshots: StandInSnapshots,
    volumes: StandInVolumes,
    schedules: StandInSchedules,
) -> Parts:
    """Return what the API is made of in tests."""
    return Parts(
        FACTS,
        fleet,
        catalog,
        snapshots,
        volumes,
        StandInResources(fleet),
        StandInIdle(fleet),
        schedules,
        StandInReclaims(fleet),
        KeptAnswers(AnswerStore()),
        HeldExecs(),
    )


@contextmanager
def serve() -> Iterator[Served]:
    """Serve a stand-in on a unix socket and on loopback TCP, from a thread with a loop of its own."""
    with tempfile.TemporaryDirectory(prefix="ramet-api-") as folder:
        path = Path(folder) / "api.sock"
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(str(path))
        Path(folder).chmod(0o711)
        path.chmod(0o666)  # As it is where others than root may ask.
        tcp = socket.create_server(("127.0.0.1", 0))
        fleet, catalog = StandInFleet(), StandInCatalog()
        snapshots, volumes = StandInSnapshots(fleet), StandInVolumes(fleet)
        schedules = StandInSchedules(fleet, snapshots)
        parts = stand_in_parts(fleet, catalog, snapshots, volumes, schedules)
        servers = [
            HttpServer(create_app(parts, auth=PeerAuth({READER_UID: ("instance:read",)})), unix),
            HttpServer(create_app(parts, auth=TokenAuth(SECRET)), tcp),
        ]
        unix.listen()  # From here on clients wait in the backlog; nobody has to be told that it is ready.

        async def run() -> None:
            async with parts.execs.running(), anyio.create_task_group() as tasks:
                for server in servers:
                    tasks.start_soon(server.serve)

        thread = threading.Thread(target=asyncio.run, args=(run(),))
        thread.start()
        try:
            url = f"http://127.0.0.1:{tcp.getsockname()[1]}"
            yield Served(fleet, catalog, snapshots, schedules, volumes, path, url)
        finally:
            for server in servers:
                server.stop()
            thread.join()
            unix.close()
            tcp.close()
            fleet.files.remove()
