"""Every call of the API, as what is sent and how the answer is read; the clients add the I/O."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar
from urllib.parse import quote, urlencode

from ramet.client.errors import ApiError, ConnectionBroken
from ramet.core.units import parse_duration
from ramet.wire_api import instances as wire
from ramet.wire_api.codec import decode, encode
from ramet.wire_api.errors import Error
from ramet.wire_api.files import PathInfo
from ramet.wire_api.images import Image, ImportImage, PullImage
from ramet.wire_api.instances import (
    CreateInstance,
    ForkInstance,
    ForkMany,
    ForkManyResult,
    Instance,
    StartInstance,
    WaitResult,
)
from ramet.wire_api.pools import SetForkPool

if TYPE_CHECKING:
    from ramet.wire_api.auto_standby import AutoStandbyStatus
    from ramet.wire_api.exec import ExecHeld
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

TIMEOUT_S: Final = 300.0  # Without a byte from the server; a guest may take two minutes to boot.
IMPORT_TIMEOUT_S: Final = 3600.0
STREAM_TIMEOUT_S: Final = 60.0  # A silent stream says that it lives, every 15 s.


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request and the reader of its answer's JSON (None where there is none), or of its text."""

    method: str
    path: str
    read: Callable[[Any], T]
    body: object | None = None
    timeout_s: float = TIMEOUT_S
    is_text: bool = False

    @property
    def body_bytes(self) -> bytes | None:
        return None if self.body is None else json.dumps(encode(self.body)).encode()

    def answer(self, status: int, body: bytes) -> T:
        """Return what the answer says.

        Raises:
            ApiError: the server refused or failed.
            ConnectionBroken: the answer is not of this API.
        """
        if not 200 <= status < 300:
            raise ApiError(status, read_error(status, body))
        try:
            if self.is_text:
                return self.read(body.decode())
            return self.read(json.loads(body) if body else None)
        except ValueError as error:
            raise ConnectionBroken(f"The server's answer to {self.path} cannot be read: {error}") from error


def read_error(status: int, body: bytes) -> Error:
    """Return the error that `body` holds, or one that tells its beginning."""
    try:
        return decode(Error, json.loads(body))
    except ValueError:
        text = body[:200].decode(errors="replace")
        return Error("unexpected_answer", f"The server answered {status}: {text}".strip())


def health() -> "Call[Health]":
    """Ask whether the server lives."""
    from ramet.wire_api.system import Health  # Making these classes costs `ramet ps` 5 ms.

    return Call("GET", "/health", _reader(Health))


def capabilities() -> "Call[Capabilities]":
    """Ask what the server can do."""
    from ramet.wire_api.system import Capabilities

    return Call("GET", "/capabilities", _reader(Capabilities))


def resources() -> "Call[Resources]":
    """Ask how full the host is."""
    from ramet.wire_api.resources import Resources

    return Call("GET", "/resources", _reader(Resources))


def reclaim_memory(body: "ReclaimMemory") -> "Call[MemoryReclaim]":
    """Have guests give memory back."""
    from ramet.wire_api.reclaim import MemoryReclaim

    return Call("POST", "/resources/memory/reclaim", _reader(MemoryReclaim), body)


def stats(ref: str) -> "Call[InstanceStats]":
    """Ask what an instance uses of the host."""
    from ramet.wire_api.resources import InstanceStats

    return Call("GET", _path(ref, "stats"), _reader(InstanceStats))


def auto_standby_status(ref: str) -> "Call[AutoStandbyStatus]":
    """Ask how far an instance is from sleeping by itself."""
    from ramet.wire_api.auto_standby import AutoStandbyStatus

    return Call("GET", _path(ref, "auto-standby/status"), _reader(AutoStandbyStatus))


def hold_auto_standby(ref: str) -> "Call[AutoStandbyStatus]":
    """Have an instance be awake for one idle time-out."""
    from ramet.wire_api.auto_standby import AutoStandbyStatus

    return Call("POST", _path(ref, "auto-standby/hold"), _reader(AutoStandbyStatus))


def metrics() -> Call[str]:
    """Read the server's figures, in Prometheus' text format."""
    return Call("GET", "/metrics", str, is_text=True)


def list_instances(state: str | None, tags: Mapping[str, str]) -> Call[list[Instance]]:
    """List instances in `state` that have all of `tags`."""
    query = [*([("state", state)] if state else []), *((f"tags[{key}]", tags[key]) for key in tags)]
    return Call("GET", "/instances" + (f"?{urlencode(query)}" if query else ""), _list_reader(Instance))


def create_instance(body: CreateInstance) -> Call[Instance]:
    """Make an instance and boot it."""
    return Call("POST", "/instances", _reader(Instance), body)


def get_instance(ref: str) -> Call[Instance]:
    """Read one instance."""
    return Call("GET", _path(ref), _reader(Instance))


def delete_instance(ref: str) -> Call[None]:
    """Remove an instance with all of its data."""
    return Call("DELETE", _path(ref), _nothing)


def start_instance(ref: str, body: StartInstance) -> Call[Instance]:
    """Boot a stopped instance from its disk."""
    return Call("POST", _path(ref, "start"), _reader(Instance), body)


def stop_instance(ref: str) -> Call[Instance]:
    """Stop an instance; its disk stays."""
    return Call("POST", _path(ref, "stop"), _reader(Instance))


def standby_instance(ref: str, body: "StandbyInstance | None" = None) -> Call[Instance]:
    """Store the memory of a running instance and end its VMM."""
    return Call("POST", _path(ref, "standby"), _reader(Instance), body)


def restore_instance(ref: str) -> Call[Instance]:
    """Wake a sleeping instance."""
    return Call("POST", _path(ref, "restore"), _reader(Instance))


def set_fork_pool(ref: str, size: int) -> Call[Instance]:
    """Have so many children of an instance made ahead."""
    return Call("PUT", _path(ref, "fork_pool"), _reader(Instance), SetForkPool(size))


def fork_instance(ref: str, name: str, target_state: str | None) -> Call[Instance]:
    """Fork an instance."""
    body = ForkInstance(name, from_running=True, target_state=target_state)
    return Call("POST", _path(ref, "fork"), _reader(Instance), body)


def fork_many(ref: str, body: ForkMany) -> Call[ForkManyResult]:
    """Fork an instance many times."""
    return Call("POST", _path(ref, "forks"), _reader(ForkManyResult), body)


def list_snapshots(filters: Mapping[str, str | None], tags: Mapping[str, str]) -> "Call[list[Snapshot]]":
    """List the snapshots that are all of `filters`, where they are not None, and have all of `tags`."""
    from ramet.wire_api.snapshots import Snapshot

    query = [(key, value) for key, value in filters.items() if value is not None]
    query += [(f"tags[{key}]", tags[key]) for key in tags]
    return Call("GET", "/snapshots" + (f"?{urlencode(query)}" if query else ""), _list_reader(Snapshot))


def get_snapshot(ref: str) -> "Call[Snapshot]":
    """Read one snapshot."""
    from ramet.wire_api.snapshots import Snapshot

    return Call("GET", _snapshot_path(ref), _reader(Snapshot))


def create_snapshot(ref: str, body: "CreateSnapshot") -> "Call[Snapshot]":
    """Take a snapshot of an instance."""
    from ramet.wire_api.snapshots import Snapshot

    return Call("POST", _path(ref, "snapshots"), _reader(Snapshot), body)


def set_snapshot_fork_pool(ref: str, size: int) -> "Call[Snapshot]":
    """Have so many children of a snapshot made ahead."""
    from ramet.wire_api.snapshots import Snapshot

    return Call("PUT", _snapshot_path(ref, "fork_pool"), _reader(Snapshot), SetForkPool(size))


def delete_snapshot(ref: str) -> Call[None]:
    """Remove a snapshot."""
    return Call("DELETE", _snapshot_path(ref), _nothing)


def get_snapshot_schedule(ref: str) -> "Call[SnapshotSchedule]":
    """Read the snapshot schedule of an instance."""
    from ramet.wire_api.schedules import SnapshotSchedule

    return Call("GET", _path(ref, "snapshot-schedule"), _reader(SnapshotSchedule))


def set_snapshot_schedule(ref: str, body: "SetSnapshotSchedule") -> "Call[SnapshotSchedule]":
    """Have snapshots of an instance be taken by schedule."""
    from ramet.wire_api.schedules import SnapshotSchedule

    return Call("PUT", _path(ref, "snapshot-schedule"), _reader(SnapshotSchedule), body)


def delete_snapshot_schedule(ref: str) -> Call[None]:
    """Take no more snapshots of an instance by schedule."""
    return Call("DELETE", _path(ref, "snapshot-schedule"), _nothing)


def restore_snapshot(ref: str, snapshot: str, target_state: str | None) -> Call[Instance]:
    """Put an instance back to one of its snapshots."""
    from ramet.wire_api.snapshots import RestoreSnapshot

    path = f"{_path(ref, 'snapshots')}/{quote(snapshot, safe='')}/restore"
    return Call("POST", path, _reader(Instance), RestoreSnapshot(target_state))


def fork_snapshot(ref: str, name: str, target_state: str | None) -> Call[Instance]:
    """Make an instance of a snapshot."""
    from ramet.wire_api.snapshots import ForkSnapshot

    body = ForkSnapshot(name, target_state)
    return Call("POST", _snapshot_path(ref, "fork"), _reader(Instance), body)


def fork_snapshot_many(ref: str, body: ForkMany) -> Call[ForkManyResult]:
    """Make many instances of a snapshot."""
    return Call("POST", _snapshot_path(ref, "forks"), _reader(ForkManyResult), body)


def verify_snapshot(ref: str) -> "Call[SnapshotVerification]":
    """Have a snapshot be looked at."""
    from ramet.wire_api.snapshots import SnapshotVerification

    read = _reader(SnapshotVerification)
    return Call("POST", _snapshot_path(ref, "verify"), read, timeout_s=IMPORT_TIMEOUT_S)


def snapshot_to_read(ref: str) -> str:
    """Return the path of a stream of a snapshot."""
    return _snapshot_path(ref, "export")


def snapshot_to_write(name: str | None) -> "Call[Snapshot]":
    """Make a snapshot of such a stream, which is sent as the body."""
    from ramet.wire_api.snapshots import Snapshot

    query = "" if name is None else f"?{_query({'name': name})}"
    return Call("POST", f"/snapshots/import{query}", _reader(Snapshot), timeout_s=IMPORT_TIMEOUT_S)


def list_volumes(tags: Mapping[str, str]) -> "Call[list[Volume]]":
    """List the volumes that have all of `tags`."""
    from ramet.wire_api.volumes import Volume

    query = [(f"tags[{key}]", value) for key, value in tags.items()]
    return Call("GET", "/volumes" + (f"?{urlencode(query)}" if query else ""), _list_reader(Volume))


def get_volume(ref: str) -> "Call[Volume]":
    """Read one volume."""
    from ramet.wire_api.volumes import Volume

    return Call("GET", _volume_path(ref), _reader(Volume))


def create_volume(body: "CreateVolume") -> "Call[Volume]":
    """Make an empty volume."""
    from ramet.wire_api.volumes import Volume

    return Call("POST", "/volumes", _reader(Volume), body)


def volume_to_fill(body: "CreateVolume") -> "Call[Volume]":
    """Make a volume of an archive, which is sent as the body."""
    from ramet.wire_api.volumes import Volume

    query = {"name": body.name, "size_gb": str(body.size_gb), **({"id": body.id} if body.id else {})}
    query |= {f"tags[{key}]": value for key, value in (body.tags or {}).items()}
    path = f"/volumes/from-archive?{_query(query)}"
    return Call("POST", path, _reader(Volume), timeout_s=IMPORT_TIMEOUT_S)


def delete_volume(ref: str) -> Call[None]:
    """Remove a volume."""
    return Call("DELETE", _volume_path(ref), _nothing)


def attach_volume(ref: str, volume: str, body: "AttachVolume") -> Call[Instance]:
    """Give a stopped instance a volume."""
    return Call("POST", _path(ref, f"volumes/{quote(volume, safe='')}"), _reader(Instance), body)


def detach_volume(ref: str, volume: str) -> Call[Instance]:
    """Take a volume from a stopped instance."""
    return Call("DELETE", _path(ref, f"volumes/{quote(volume, safe='')}"), _reader(Instance))


def wait_for_state(ref: str, state: str, timeout: str | None) -> Call[WaitResult]:
    """Wait until an instance is in `state`."""
    query = {"state": state, **({"timeout": timeout} if timeout else {})}
    wait_s = min(parse_duration(timeout) if timeout else 0, wire.WAIT_S_MAX)
    path = f"{_path(ref, 'wait')}?{urlencode(query)}"
    return Call("GET", path, _reader(WaitResult), timeout_s=TIMEOUT_S + wait_s)


def logs_path(ref: str, *, source: str, tail: int, follow: bool) -> str:
    """Return the path of a stream of log lines."""
    query = {"source": source, "tail": tail, "follow": _flag(follow)}
    return f"{_path(ref, 'logs')}?{urlencode(query)}"


def exec_path(ref: str) -> str:
    """Return the path of an exec session."""
    return _path(ref, "exec")


def held_exec_path(ref: str) -> str:
    """Return the path of exec sessions that may be left."""
    return _path(ref, "exec/v1")


def list_execs(ref: str) -> "Call[list[ExecHeld]]":
    """List the exec sessions of an instance that may be left."""
    from ramet.wire_api.exec import ExecHeld

    return Call("GET", _path(ref, "exec/v1/sessions"), _list_reader(ExecHeld))


def stat_path(ref: str, path: str, *, follow_links: bool) -> Call[PathInfo]:
    """Tell what is at a path of a guest."""
    query = {"path": path, "follow_links": _flag(follow_links)}
    return Call("GET", f"{_path(ref, 'stat')}?{_query(query)}", _reader(PathInfo))


def archive_to_read(ref: str, path: str, *, follow_links: bool) -> str:
    """Return the path of a stream of a guest's files."""
    return f"{_path(ref, 'archive')}?{_query({'path': path, 'follow_links': _flag(follow_links)})}"


def archive_to_write(ref: str, path: str, *, keep_owner: bool) -> Call[None]:
    """Unpack an archive, which is sent as the body, into a folder of a guest."""
    query = {"path": path, "keep_owner": _flag(keep_owner)}
    return Call("PUT", f"{_path(ref, 'archive')}?{_query(query)}", _nothing)


def list_images() -> Call[list[Image]]:
    """List all images."""
    return Call("GET", "/images", _list_reader(Image))


def get_image(name: str) -> Call[Image]:
    """Read one image."""
    return Call("GET", f"/images/{quote(name, safe='')}", _reader(Image))


def pull_image(body: PullImage) -> Call[Image]:
    """Begin to pull an image."""
    return Call("POST", "/images", _reader(Image), body)


def delete_image(name: str) -> Call[None]:
    """Remove a name of an image, and with the last one the image."""
    return Call("DELETE", f"/images/{quote(name, safe='')}", _nothing)


def import_image(path: str, name: str | None) -> Call[Image]:
    """Add the image at `path` on the server's host."""
    return Call("POST", "/images/import", _reader(Image), ImportImage(path, name), IMPORT_TIMEOUT_S)


def _path(ref: str, action: str = "") -> str:
    return f"/instances/{quote(ref, safe='')}" + (f"/{action}" if action else "")


def _snapshot_path(ref: str, action: str = "") -> str:
    return f"/snapshots/{quote(ref, safe='')}" + (f"/{action}" if action else "")


def _volume_path(ref: str) -> str:
    return f"/volumes/{quote(ref, safe='')}"


def _query(members: Mapping[str, str]) -> str:
    return urlencode(members, errors="surrogateescape")


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _reader(kind: type[T]) -> Callable[[Any], T]:
    return lambda raw: decode(kind, raw)


def _list_reader(kind: type[T]) -> Callable[[Any], list[T]]:
    def read(raw: Any) -> list[T]:
        if not isinstance(raw, list):
            raise ValueError("expected a list")
        return [decode(kind, item) for item in raw]

    return read


def _nothing(_: Any) -> None:
    return None
