"""The API for programs and for the command line, blocking.

A connection per call: on a unix socket it costs less than keeping track of one.
"""

import json
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Final, TypeVar

from ramet.client import calls
from ramet.client.calls import Call
from ramet.client.endpoint import Endpoint
from ramet.client.errors import ApiError, ConnectionBroken, NotReachable
from ramet.client.http1 import LAST_CHUNK, Answer, EventLines, NotHttp, chunk_bytes, request_bytes
from ramet.wire_api.exec import ExecHeld, ExecOpening, ExecStart
from ramet.wire_api.files import ARCHIVE_MEDIA_TYPE, PathInfo
from ramet.wire_api.images import Image, PullImage
from ramet.wire_api.instances import (
    LOG_TAIL_LINES_DEFAULT,
    CreateInstance,
    ForkMany,
    ForkManyResult,
    Instance,
    StartInstance,
    WaitResult,
)

if TYPE_CHECKING:
    from ramet.client.exec import ExecConnection, HeldExecConnection
    from ramet.wire_api.auto_standby import AutoStandbyStatus
    from ramet.wire_api.reclaim import MemoryReclaim, ReclaimMemory
    from ramet.wire_api.resources import InstanceStats, Resources
    from ramet.wire_api.schedules import SetSnapshotSchedule, SnapshotSchedule
    from ramet.wire_api.snapshots import (
        CreateSnapshot,
        Snapshot,
        SnapshotVerification,
        StandbyInstance,
    )
    from ramet.wire_api.system import Capabilities, Health
    from ramet.wire_api.volumes import AttachVolume, CreateVolume, Volume

T = TypeVar("T")

CONNECT_TIMEOUT_S: Final = 10.0
RECEIVE_BYTES: Final = 256 << 10


class Client:
    """One server. `ref` is the name, the id or a unique beginning of the id of an instance, a snapshot
    or a volume.

    Every method raises ApiError if the server refuses, NotReachable if there is none, ConnectionBroken if it
    goes away or takes too long.

    Args:
        endpoint: where it is; by default as the environment says.
    """

    def __init__(self, endpoint: Endpoint | None = None) -> None:
        self.endpoint = endpoint or Endpoint.from_environment()

    def health(self) -> "Health":
        return self._send(calls.health())

    def capabilities(self) -> "Capabilities":
        return self._send(calls.capabilities())

    def resources(self) -> "Resources":
        return self._send(calls.resources())

    def reclaim_memory(self, body: "ReclaimMemory") -> "MemoryReclaim":
        """Have running guests give memory back to the host for a while."""
        return self._send(calls.reclaim_memory(body))

    def stats(self, ref: str) -> "InstanceStats":
        """Return what an instance uses of the host."""
        return self._send(calls.stats(ref))

    def auto_standby_status(self, ref: str) -> "AutoStandbyStatus":
        """Return how far an instance is from sleeping by itself, and whether traffic wakes it."""
        return self._send(calls.auto_standby_status(ref))

    def hold_auto_standby(self, ref: str) -> "AutoStandbyStatus":
        """Have the server promise that an instance is awake for one idle time-out from now."""
        return self._send(calls.hold_auto_standby(ref))

    def metrics(self) -> str:
        """Return the server's figures, in Prometheus' text format."""
        return self._send(calls.metrics())

    def create(self, body: CreateInstance) -> Instance:
        return self._send(calls.create_instance(body))

    def list(self, state: str | None = None, tags: Mapping[str, str] | None = None) -> Sequence[Instance]:
        return self._send(calls.list_instances(state, tags or {}))

    def get(self, ref: str) -> Instance:
        return self._send(calls.get_instance(ref))

    def delete(self, ref: str) -> None:
        self._send(calls.delete_instance(ref))

    def start(
        self, ref: str, *, entrypoint: tuple[str, ...] | None = None, cmd: tuple[str, ...] | None = None
    ) -> Instance:
        """Boot a stopped instance from its disk; what is given replaces its own from here on."""
        return self._send(calls.start_instance(ref, StartInstance(entrypoint, cmd)))

    def stop(self, ref: str) -> Instance:
        return self._send(calls.stop_instance(ref))

    def standby(self, ref: str, body: "StandbyInstance | None" = None) -> Instance:
        """Store the memory of a running instance and end its VMM; `body` says how it is compressed later."""
        return self._send(calls.standby_instance(ref, body))

    def restore(self, ref: str) -> Instance:
        """Wake a sleeping instance."""
        return self._send(calls.restore_instance(ref))

    def set_fork_pool(self, ref: str, size: int) -> Instance:
        """Have `size` children of an instance made ahead of their fork whenever it runs; 0: none."""
        return self._send(calls.set_fork_pool(ref, size))

    def fork(self, ref: str, name: str, *, target_state: str | None = None) -> Instance:
        """Fork an instance; the child is by default what the source is: Running, Standby or Stopped."""
        return self._send(calls.fork_instance(ref, name, target_state))

    def fork_many(
        self, ref: str, count: int, name_prefix: str, *, target_state: str | None = None
    ) -> ForkManyResult:
        """Fork an instance `count` times; the children are `<name_prefix>-1` and so on."""
        body = ForkMany(count, name_prefix, target_state=target_state)
        return self._send(calls.fork_many(ref, body))

    def fork_as(self, ref: str, names: Sequence[str], *, target_state: str | None = None) -> ForkManyResult:
        """Fork an instance once for each of `names`."""
        return self._send(calls.fork_many(ref, ForkMany(names=tuple(names), target_state=target_state)))

    def snapshots(
        self,
        *,
        source: str | None = None,
        kind: str | None = None,
        name: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> "Sequence[Snapshot]":
        """Return the snapshots that are all of what is not None; `source` is an instance's id or name."""
        filters = {"source_instance_id": source, "kind": kind, "name": name}
        return self._send(calls.list_snapshots(filters, tags or {}))

    def get_snapshot(self, ref: str) -> "Snapshot":
        return self._send(calls.get_snapshot(ref))

    def create_snapshot(self, ref: str, body: "CreateSnapshot") -> "Snapshot":
        """Take a snapshot of an instance; durable when this returns."""
        return self._send(calls.create_snapshot(ref, body))

    def set_snapshot_fork_pool(self, ref: str, size: int) -> "Snapshot":
        """Have `size` children of a snapshot made ahead of its next forks; 0: none."""
        return self._send(calls.set_snapshot_fork_pool(ref, size))

    def delete_snapshot(self, ref: str) -> None:
        self._send(calls.delete_snapshot(ref))

    def get_snapshot_schedule(self, ref: str) -> "SnapshotSchedule":
        return self._send(calls.get_snapshot_schedule(ref))

    def set_snapshot_schedule(self, ref: str, body: "SetSnapshotSchedule") -> "SnapshotSchedule":
        """Have snapshots of an instance be taken at an interval, in the place of any schedule it has."""
        return self._send(calls.set_snapshot_schedule(ref, body))

    def delete_snapshot_schedule(self, ref: str) -> None:
        """Take no more snapshots of an instance by schedule; those there are stay."""
        self._send(calls.delete_snapshot_schedule(ref))

    def restore_snapshot(self, ref: str, snapshot: str, *, target_state: str | None = None) -> Instance:
        """Put an instance that does not run back to one of its own snapshots.

        It is Running then if the snapshot holds memory, Stopped if not, or as `target_state` says.
        """
        return self._send(calls.restore_snapshot(ref, snapshot, target_state))

    def verify_snapshot(self, ref: str) -> "SnapshotVerification":
        """Have a snapshot be read to its end and compared with its checksums; may take as long as reading."""
        return self._send(calls.verify_snapshot(ref))

    def export_snapshot(self, ref: str) -> Iterator[bytes]:
        """Yield a snapshot as one file. It is whole only if it ends without an error."""
        return self._stream(calls.snapshot_to_read(ref), calls.IMPORT_TIMEOUT_S)

    def import_snapshot(self, chunks: Iterable[bytes], name: str | None = None) -> "Snapshot":
        """Make a snapshot of such a file, called `name` or as it was. An error of `chunks` ends it."""
        return self._upload(calls.snapshot_to_write(name), chunks)

    def volumes(self, tags: Mapping[str, str] | None = None) -> "Sequence[Volume]":
        """Return the volumes that have all of `tags`, oldest first."""
        return self._send(calls.list_volumes(tags or {}))

    def get_volume(self, ref: str) -> "Volume":
        return self._send(calls.get_volume(ref))

    def create_volume(self, body: "CreateVolume") -> "Volume":
        return self._send(calls.create_volume(body))

    def create_volume_from_archive(self, body: "CreateVolume", chunks: Iterable[bytes]) -> "Volume":
        """Make a volume with the content of a tar archive, plain or packed. An error of `chunks` ends it."""
        return self._upload(calls.volume_to_fill(body), chunks)

    def delete_volume(self, ref: str) -> None:
        self._send(calls.delete_volume(ref))

    def attach_volume(self, ref: str, volume: str, body: "AttachVolume") -> Instance:
        """Have a stopped instance have a volume from its next start on."""
        return self._send(calls.attach_volume(ref, volume, body))

    def detach_volume(self, ref: str, volume: str) -> Instance:
        """Have a stopped instance have a volume no more."""
        return self._send(calls.detach_volume(ref, volume))

    def fork_snapshot(self, ref: str, name: str, *, target_state: str | None = None) -> Instance:
        """Make an instance of a snapshot; its state is as of `restore_snapshot`."""
        return self._send(calls.fork_snapshot(ref, name, target_state))

    def fork_snapshot_many(
        self, ref: str, count: int, name_prefix: str, *, target_state: str | None = None
    ) -> ForkManyResult:
        """Make `count` instances of a snapshot: `<name_prefix>-1` and so on."""
        body = ForkMany(count, name_prefix, target_state=target_state)
        return self._send(calls.fork_snapshot_many(ref, body))

    def wait(self, ref: str, state: str, timeout: str | None = None) -> WaitResult:
        """Wait until an instance is in `state`; `timeout` such as "90s", at most five minutes."""
        return self._send(calls.wait_for_state(ref, state, timeout))

    def logs(
        self, ref: str, *, source: str = "app", tail: int = LOG_TAIL_LINES_DEFAULT, follow: bool = False
    ) -> Iterator[str]:
        """Yield the last `tail` lines of a log; with `follow`, each new one."""
        events = EventLines()
        path = calls.logs_path(ref, source=source, tail=tail, follow=follow)
        for data in self._stream(path, calls.STREAM_TIMEOUT_S):
            try:
                lines = [str(json.loads(line)) for line in events.feed(data)]
            except (NotHttp, ValueError, RecursionError) as error:
                raise _broken(self.endpoint, error) from error
            yield from lines

    def exec(self, ref: str, start: ExecStart) -> "ExecConnection":
        """Start a command in a guest; use the result in a `with`."""
        from ramet.client.exec import ExecConnection  # Brings in websockets, which other calls need not.

        return ExecConnection(self.endpoint, ref, start)

    def hold_exec(self, ref: str, opening: ExecOpening) -> "HeldExecConnection":
        """Start a command that may be left, or come back to one; use the result in a `with`."""
        from ramet.client.exec import HeldExecConnection

        return HeldExecConnection(self.endpoint, ref, opening)

    def list_execs(self, ref: str) -> Sequence[ExecHeld]:
        """Return the commands of an instance that may be left, oldest first."""
        return self._send(calls.list_execs(ref))

    def stat_path(self, ref: str, path: str, *, follow_links: bool = False) -> PathInfo:
        """Tell what is at a path of a guest: of a symbolic link itself, or of what it leads to."""
        return self._send(calls.stat_path(ref, path, follow_links=follow_links))

    def read_archive(self, ref: str, path: str, *, follow_links: bool = False) -> Iterator[bytes]:
        """Yield `path` of a guest, with all below it, as a POSIX pax tar stream.

        Names begin with the last part of `path`. It is whole only if it ends without an error. Closing the
        iterator ends the copy.
        """
        return self._stream(calls.archive_to_read(ref, path, follow_links=follow_links), calls.TIMEOUT_S)

    def write_archive(
        self, ref: str, path: str, chunks: Iterable[bytes], *, keep_owner: bool = False
    ) -> None:
        """Unpack a tar stream into `path`, a folder of a guest. An error of `chunks` ends the copy.

        Args:
            keep_owner: files belong to whom the archive says, not to the user of the guest's workload.
        """
        self._upload(calls.archive_to_write(ref, path, keep_owner=keep_owner), chunks)

    def images(self) -> Sequence[Image]:
        return self._send(calls.list_images())

    def get_image(self, name: str) -> Image:
        return self._send(calls.get_image(name))

    def pull_image(self, body: PullImage) -> Image:
        """Begin to pull an image; `get_image` tells how far it is."""
        return self._send(calls.pull_image(body))

    def import_image(self, path: str, name: str | None = None) -> Image:
        """Add the image at the absolute `path` on the server's host, under `name`."""
        return self._send(calls.import_image(path, name))

    def delete_image(self, name: str) -> None:
        self._send(calls.delete_image(name))

    def _send(self, call: Call[T]) -> T:
        with closing(connect(self.endpoint)) as connection:
            try:
                connection.sendall(_request(self.endpoint, call.method, call.path, call.body_bytes))
                connection.settimeout(call.timeout_s)
                answer, body = _receive_answer(connection)
            except (OSError, NotHttp) as error:
                raise _broken(self.endpoint, error) from error
        return call.answer(answer.status, body)

    def _upload(self, call: Call[T], chunks: Iterable[bytes]) -> T:
        with closing(connect(self.endpoint)) as connection:
            connection.settimeout(call.timeout_s)
            try:
                connection.sendall(_upload_request(self.endpoint, call))
                _send_chunks(connection, chunks)
                answer, body = _receive_answer(connection)
            except (OSError, NotHttp) as error:
                raise _broken(self.endpoint, error) from error
        return call.answer(answer.status, body)

    def _stream(self, path: str, timeout_s: float) -> Iterator[bytes]:
        """Yield the body of an answer as it comes in; a silence of `timeout_s` breaks it."""
        with closing(connect(self.endpoint)) as connection:
            answer, refusal = Answer(), bytearray()
            try:
                connection.sendall(_request(self.endpoint, "GET", path, None))
                connection.settimeout(timeout_s)
                while not answer.is_complete:
                    data = answer.feed(connection.recv(RECEIVE_BYTES))
                    if answer.status == 200:
                        yield data
                    else:
                        refusal += data
            except (OSError, NotHttp) as error:
                raise _broken(self.endpoint, error) from error
        if answer.status != 200:
            raise ApiError(answer.status, calls.read_error(answer.status, bytes(refusal)))


def connect(endpoint: Endpoint) -> socket.socket:
    """Return a connected socket.

    Raises:
        NotReachable: nobody listens there, or we may not connect.
    """
    try:
        if endpoint.socket_path is not None:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.settimeout(CONNECT_TIMEOUT_S)
                connection.connect(endpoint.socket_path)
            except OSError:
                connection.close()
                raise
            return connection
        plain = socket.create_connection((endpoint.host, endpoint.port), CONNECT_TIMEOUT_S)
        return _under_tls(plain, endpoint.host) if endpoint.is_tls else plain
    except OSError as error:
        raise not_reachable(endpoint, error) from error


def not_reachable(endpoint: Endpoint, error: OSError) -> NotReachable:
    """Return the error for an `endpoint` that could not be connected to."""
    if isinstance(error, PermissionError):
        remedy = "run as root, or as a user who may use the socket"
    else:
        remedy = "start it with: ramet serve"
    reason = error.strerror or str(error)
    return NotReachable(f"No ramet server answers at {endpoint}: {reason}", remedy=remedy)


def _under_tls(connection: socket.socket, host: str) -> socket.socket:
    import ssl  # Few need it.

    return ssl.create_default_context().wrap_socket(connection, server_hostname=host)


def _request(endpoint: Endpoint, method: str, path: str, body: bytes | None) -> bytes:
    return request_bytes(method, endpoint.prefix + path, endpoint.authority, endpoint.headers, body)


def _upload_request(endpoint: Endpoint, call: Call[T]) -> bytes:
    headers = {**endpoint.headers, "Content-Type": ARCHIVE_MEDIA_TYPE, "Transfer-Encoding": "chunked"}
    return request_bytes(call.method, endpoint.prefix + call.path, endpoint.authority, headers, None)


def _send_chunks(connection: socket.socket, chunks: Iterable[bytes]) -> None:
    """Send a body to its end, or until the server hangs up, as it does when it has refused it."""
    try:
        for chunk in chunks:
            if chunk:
                connection.sendall(chunk_bytes(chunk))
        connection.sendall(LAST_CHUNK)
    except (BrokenPipeError, ConnectionResetError):
        return  # What it said before that can still be read.


def _receive_answer(connection: socket.socket) -> tuple[Answer, bytes]:
    answer, body = Answer(), bytearray()
    while not answer.is_complete:
        body += answer.feed(connection.recv(RECEIVE_BYTES))
    return answer, bytes(body)


def _broken(endpoint: Endpoint, error: Exception) -> ConnectionBroken:
    if isinstance(error, TimeoutError):
        return ConnectionBroken(f"The server at {endpoint} did not answer in time")
    return ConnectionBroken(f"The connection to {endpoint} broke: {error}")
