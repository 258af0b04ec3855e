"""The official client of the API we are compatible with, unmodified, over TCP with a token."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import httpx
import hypeman
import pytest
from hypeman import Hypeman
from hypeman.lib.exec import exec as exec_in
from websockets.exceptions import InvalidStatus

from ramet.admission.demand import Resource
from ramet.admission.ledger import Limit
from ramet.core.compression import Compression, CompressionAlgorithm, CompressionAsk, MemoryState
from ramet.core.spec import State
from ramet.images import LINUX_AMD64, PullStatus, PullView, parse_reference
from ramet.instance.fleet_types import WindowSize
from tests.api.stand_in import Served, token

if TYPE_CHECKING:
    from hypeman.types import SnapshotPolicyParam
    from hypeman.types.shared_params import SnapshotCompressionConfig

IMAGE = "docker.io/library/alpine:latest"


@pytest.fixture
def client(served: Served) -> Iterator[Hypeman]:
    with Hypeman(base_url=served.url, api_key=token()) as client:
        yield client


def test_it_creates_reads_and_deletes_an_instance(client: Hypeman) -> None:
    made = client.instances.create(
        name="web", image=IMAGE, size="512MB", vcpus=1, env={"A": "b"}, tags={"t": "1"}
    )
    assert (made.name, made.state, made.size, made.vcpus) == ("web", "Running", "512MB", 1)
    assert made.network is not None
    assert made.network.ip == "10.100.0.7"
    assert client.instances.get(made.id[:8]) == client.instances.get("web") == made
    client.instances.delete("web")
    with pytest.raises(hypeman.NotFoundError, match="no instance web"):
        client.instances.get("web")


def test_it_filters_lists_by_state_and_tags(client: Hypeman) -> None:
    client.instances.create(name="one", image=IMAGE, tags={"team": "a"})
    client.instances.create(name="two", image=IMAGE, tags={"team": "b"})
    client.instances.stop("two")
    assert [found.name for found in client.instances.list()] == ["one", "two"]
    assert [found.name for found in client.instances.list(state="Stopped")] == ["two"]
    assert [found.name for found in client.instances.list(tags={"team": "a"})] == ["one"]


def test_it_forks_a_running_instance_and_is_told_how_long_each_phase_took(client: Hypeman) -> None:
    source = client.instances.create(name="web", image=IMAGE)
    child = client.instances.fork("web", name="child", from_running=True)
    assert (child.name, child.state) == ("child", "Running")
    extra = child.model_extra
    assert extra is not None
    assert extra["parent_id"] == source.id
    assert extra["timings_ms"]["total"] == 80.0


def test_it_reads_how_full_the_host_is(client: Hypeman, served: Served) -> None:
    served.fleet.limits = (
        Limit(Resource.CPU, 2, 4.0),
        Limit(Resource.MEMORY, 8 << 30, 1.5, "configured"),
        Limit(Resource.DISK, 100 << 30),
        Limit(Resource.DISK_IO, 10**9, 2.0, "configured"),
    )
    web = client.instances.create(
        name="web", image=IMAGE, size="512MB", vcpus=1, overlay_size="2GB", disk_io_bps="100MB/s"
    )
    client.instances.create(
        name="idle", image=IMAGE, size="1GB", vcpus=2, overlay_size="3GB", disk_io_bps="200MB/s"
    )
    client.instances.stop("idle")
    found = client.resources.get()
    assert found.disk_io is not None
    shown = [found.cpu, found.memory, found.disk, found.network, found.disk_io]
    assert [(each.type, each.capacity, each.effective_limit, each.source) for each in shown] == [
        ("cpu", 2, 8, "detected"),
        ("memory", 8 << 30, 12 << 30, "configured"),
        ("disk", 100 << 30, 100 << 30, "detected"),
        ("network", 0, 0, "unknown"),
        ("disk_io", 10**9, 2 * 10**9, "configured"),
    ]
    assert [(each.allocated, each.available) for each in shown] == [
        (1, 7),
        (512 << 20, (12 << 30) - (512 << 20)),
        (5 << 30, 95 << 30),
        (0, 0),
        (10**8, 19 * 10**8),
    ]
    held = {each.instance_name: (each.cpu, each.memory_bytes, each.disk_bytes) for each in found.allocations}
    assert held == {"web": (1, 512 << 20, 2 << 30), "idle": (0, 0, 3 << 30)}
    assert found.allocations[0].instance_id == web.id
    assert [each.disk_io_bps for each in found.allocations] == [10**8, 0]
    assert found.disk_breakdown is not None
    assert (found.disk_breakdown.images_bytes, found.disk_breakdown.overlays_bytes) == (5 << 20, 1 << 20)
    assert found.gpu is None


def test_what_there_is_no_room_for_is_a_conflict_with_its_code(client: Hypeman, served: Served) -> None:
    served.fleet.limits = (Limit(Resource.MEMORY, 1 << 30),)
    client.instances.create(name="web", image=IMAGE, size="1GB")
    with pytest.raises(hypeman.ConflictError, match="not enough memory for instance more") as refused:
        client.with_options(max_retries=0).instances.create(name="more", image=IMAGE, size="512MB")
    body = refused.value.body
    assert isinstance(body, dict)
    assert body["code"] == "insufficient_resources"
    assert body["fields"] == {"resource": "memory", "asked": 512 << 20, "free": 0, "limit": 1 << 30}
    assert [found.name for found in client.instances.list()] == ["web"]


def test_it_puts_an_instance_to_standby_and_wakes_it(client: Hypeman) -> None:
    client.instances.create(name="web", image=IMAGE)
    slept = client.instances.standby("web", compression={"enabled": False})
    assert (slept.state, slept.has_snapshot) == ("Standby", True)
    assert [found.name for found in client.instances.list(state="Standby")] == ["web"]
    with pytest.raises(hypeman.ConflictError, match="invalid_state"):
        client.instances.standby("web")
    woken = client.instances.restore("web")
    assert (woken.state, woken.has_snapshot) == ("Running", False)
    with pytest.raises(hypeman.ConflictError, match="invalid_state"):
        client.instances.restore("web")


@pytest.mark.parametrize("state", ["Running", "Standby", "Stopped"])
def test_it_forks_from_every_state_to_every_state(
    client: Hypeman, served: Served, state: Literal["Running", "Standby", "Stopped"]
) -> None:
    served.fleet.put("web", State(state))
    assert client.instances.fork("web", name="like-it", from_running=True).state == state
    targets: tuple[Literal["Running", "Standby", "Stopped"], ...] = ("Running", "Standby", "Stopped")
    for target in targets:
        child = client.instances.fork(
            "web", name=f"to-{target.lower()}", from_running=True, target_state=target
        )
        assert (child.state, child.has_snapshot) == (target, target == "Standby")


def test_it_takes_lists_and_deletes_snapshots(client: Hypeman) -> None:
    source = client.instances.create(name="web", image=IMAGE)
    made = client.instances.snapshots.create("web", kind="Standby", name="warm", tags={"of": "web"})
    assert (made.kind, made.name, made.tags) == ("Standby", "warm", {"of": "web"})
    assert (made.source_instance_id, made.source_instance_name) == (source.id, "web")
    assert (made.source_hypervisor, made.compression_state) == ("qemu", "none")
    assert (made.size_bytes, made.uncompressed_size_bytes) == (91 << 20, 90 << 20)
    assert client.snapshots.get(made.id) == client.snapshots.get("warm") == made
    client.instances.stop("web")
    cold = client.instances.snapshots.create("web", kind="Stopped")
    assert (cold.kind, cold.name, cold.uncompressed_size_bytes) == ("Stopped", None, None)
    assert [found.id for found in client.snapshots.list()] == [made.id, cold.id]
    assert client.snapshots.list(kind="Stopped") == [cold]
    assert client.snapshots.list(name="warm") == client.snapshots.list(tags={"of": "web"}) == [made]
    assert client.snapshots.list(source_instance_id=source.id, kind="Standby") == [made]
    assert client.snapshots.list(source_instance_id="another") == []
    client.instances.delete("web")
    client.snapshots.delete("warm")
    assert client.snapshots.list() == [cold]
    with pytest.raises(hypeman.NotFoundError, match="snapshot_not_found"):
        client.snapshots.get("warm")


def test_it_is_told_why_a_snapshot_cannot_be_taken(client: Hypeman) -> None:
    client.instances.create(name="web", image=IMAGE)
    with pytest.raises(hypeman.ConflictError, match="invalid_state"):
        client.instances.snapshots.create("web", kind="Stopped")
    client.instances.snapshots.create("web", kind="Standby", name="warm")
    with pytest.raises(hypeman.ConflictError, match="snapshot_name_taken"):
        client.instances.snapshots.create("web", kind="Standby", name="warm")
    with pytest.raises(hypeman.BadRequestError, match="cannot be the name of a snapshot"):
        client.instances.snapshots.create("web", kind="Standby", name="Warm")
    with pytest.raises(hypeman.NotFoundError, match="instance_not_found"):
        client.instances.snapshots.create("nobody", kind="Standby")


def test_it_says_how_sleeping_memory_is_compressed(client: Hypeman, served: Served) -> None:
    for wanted, heard in (
        ({"enabled": True}, Compression(CompressionAlgorithm.ZSTD, 1)),
        ({"enabled": True, "algorithm": "zstd", "level": 19}, Compression(CompressionAlgorithm.ZSTD, 19)),
        ({"enabled": True, "algorithm": "lz4"}, Compression(CompressionAlgorithm.LZ4, 0)),
        ({"enabled": False, "level": 77}, None),
    ):
        served.fleet.put("web")
        client.instances.standby(
            "web", compression=cast("SnapshotCompressionConfig", wanted), compression_delay="1m30s"
        )
        assert served.fleet.compression == CompressionAsk(heard, is_said=True, delay_s=90)
        client.instances.delete("web")
    served.fleet.put("web")
    client.instances.standby("web", compression_delay="5s")
    assert served.fleet.compression == CompressionAsk(delay_s=5)


def test_an_instance_keeps_its_snapshot_policy(client: Hypeman, served: Served) -> None:
    policies: list[tuple[SnapshotPolicyParam, CompressionAsk, tuple[object, ...], str | None]] = [
        (
            {"compression": {"enabled": True}, "standby_compression_delay": "90s"},
            CompressionAsk(Compression.of(), is_said=True, delay_s=90),
            (True, "zstd", 1),
            "1m30s",
        ),
        (
            {"compression": {"enabled": False, "algorithm": "lz4"}},
            CompressionAsk(None, is_said=True),
            (False, None, None),
            None,
        ),
    ]
    for policy, heard, shown, delay in policies:
        made = client.instances.create(name="web", image=IMAGE, snapshot_policy=policy)
        assert served.fleet.get("web").record.spec.compression == heard
        told = client.instances.get("web").snapshot_policy
        assert told == made.snapshot_policy
        assert told is not None
        assert told.compression is not None
        assert (told.compression.enabled, told.compression.algorithm, told.compression.level) == shown
        assert told.standby_compression_delay == delay
        client.instances.delete("web")
    client.instances.create(name="web", image=IMAGE, snapshot_policy={"standby_compression_delay": "5s"})
    told = client.instances.get("web").snapshot_policy
    assert told is not None
    assert (told.compression, told.standby_compression_delay) == (None, "5s")
    client.instances.create(name="plain", image=IMAGE)
    assert client.instances.get("plain").snapshot_policy is None
    with pytest.raises(hypeman.BadRequestError, match="level"):
        client.instances.create(
            name="bad", image=IMAGE, snapshot_policy={"compression": {"enabled": True, "level": 20}}
        )


def test_a_snapshot_tells_how_its_memory_lies_on_the_disk(client: Hypeman, served: Served) -> None:
    served.fleet.put("web")
    made = client.instances.snapshots.create(
        "web", kind="Standby", compression={"enabled": True, "algorithm": "lz4", "level": 9}
    )
    assert made.compression is not None
    assert (made.compression.enabled, made.compression.algorithm, made.compression.level) == (True, "lz4", 9)
    assert (made.compression_state, made.compressed_size_bytes) == ("compressing", None)
    how = served.snapshots.memory[made.id].how
    served.snapshots.memory[made.id] = MemoryState("compressed", how, compressed_bytes=30 << 20)
    (done,) = client.snapshots.list()
    assert (done.compression_state, done.compressed_size_bytes) == ("compressed", 30 << 20)
    assert (done.size_bytes, done.uncompressed_size_bytes) == (31 << 20, 90 << 20)
    served.snapshots.memory[made.id] = MemoryState("error", how, error="the disk is full")
    failed = client.snapshots.get(made.id)
    assert (failed.compression_state, failed.compression_error) == ("error", "the disk is full")
    assert failed.size_bytes == 91 << 20


def test_compression_that_cannot_be_is_refused(client: Hypeman, served: Served) -> None:
    served.fleet.put("web")
    for wanted, named in (
        ({"enabled": True, "algorithm": "gzip"}, "gzip"),
        ({"enabled": True, "level": 20}, "1 to 19"),
        ({"enabled": True, "algorithm": "lz4", "level": -1}, "0 to 9"),
    ):
        compression = cast("SnapshotCompressionConfig", wanted)
        with pytest.raises(hypeman.BadRequestError, match=named):
            client.instances.standby("web", compression=compression)
        with pytest.raises(hypeman.BadRequestError, match=named):
            client.instances.snapshots.create("web", kind="Standby", compression=compression)
    served.fleet.set("web", State.STOPPED)
    with pytest.raises(hypeman.BadRequestError, match="no memory to compress"):
        client.instances.snapshots.create("web", kind="Stopped", compression={"enabled": True})
    client.instances.snapshots.create("web", kind="Stopped", compression={"enabled": False})


def test_it_goes_back_to_a_snapshot_in_place(client: Hypeman) -> None:
    client.instances.create(name="web", image=IMAGE)
    warm = client.instances.snapshots.create("web", kind="Standby")
    with pytest.raises(hypeman.ConflictError, match="invalid_state"):
        client.instances.snapshots.restore(warm.id, id="web")
    client.instances.stop("web")
    assert client.instances.snapshots.restore(warm.id, id="web").state == "Running"
    client.instances.stop("web")
    assert client.instances.snapshots.restore(warm.id, id="web", target_state="Standby").state == "Standby"
    with pytest.raises(hypeman.InternalServerError, match="own hypervisor"):
        client.instances.snapshots.restore(warm.id, id="web", target_hypervisor="firecracker")


def test_it_forks_snapshots(client: Hypeman) -> None:
    source = client.instances.create(name="web", image=IMAGE, env={"A": "b"})
    warm = client.instances.snapshots.create("web", kind="Standby")
    client.instances.stop("web")
    cold = client.instances.snapshots.create("web", kind="Stopped")
    client.instances.delete("web")
    child = client.snapshots.fork(warm.id, name="warm")
    assert (child.name, child.state, child.env) == ("warm", "Running", {"A": "b"})
    assert child.model_extra is not None
    assert child.model_extra["parent_id"] == source.id
    assert client.snapshots.fork(warm.id, name="asleep", target_state="Standby").has_snapshot
    assert client.snapshots.fork(cold.id, name="cold").state == "Stopped"
    assert client.snapshots.fork(cold.id, name="booted", target_state="Running").state == "Running"
    with pytest.raises(hypeman.ConflictError, match="name_taken"):
        client.snapshots.fork(cold.id, name="booted")


def test_it_waits_and_stops(client: Hypeman) -> None:
    client.instances.create(name="web", image=IMAGE)
    stopped = client.instances.stop("web")
    assert (stopped.state, stopped.exit_code) == ("Stopped", 128 + 15)
    waited = client.instances.wait("web", state="Running", api_timeout="1s")
    assert (waited.state, waited.timed_out) == ("Stopped", True)


def test_it_streams_log_lines(client: Hypeman, served: Served) -> None:
    client.instances.create(name="web", image=IMAGE)
    served.fleet.log[-1] = 'the "last" line: \N{SNOWMAN}\t'
    lines = list(client.instances.logs("web", tail=2, source="vmm"))
    assert lines == ["vmm: line 198", 'vmm: the "last" line: \N{SNOWMAN}\t']


def test_it_follows_logs_until_it_leaves(client: Hypeman) -> None:
    client.instances.create(name="web", image=IMAGE)
    with client.instances.logs("web", follow=True, tail=1) as stream:
        assert next(iter(stream)) == "line 199"


def test_it_reads_and_removes_images(client: Hypeman) -> None:
    assert [found.name for found in client.images.list()] == [IMAGE]
    found = client.images.get(IMAGE)
    assert (found.status, found.working_dir, found.env) == ("ready", "/srv", {"PATH": "/bin", "EMPTY": ""})
    client.images.delete(IMAGE)
    assert client.images.list() == []


def test_an_image_gets_a_further_name(client: Hypeman, served: Served) -> None:
    made = client.images.tag(IMAGE, target="docker.io/library/mine:1")
    assert (made.name, made.status) == ("docker.io/library/mine:1", "ready")
    assert client.images.get("docker.io/library/mine:1").digest == client.images.get(IMAGE).digest
    with pytest.raises(hypeman.NotFoundError, match="image_not_found"):
        client.images.tag("docker.io/library/nobody:1", target="docker.io/library/mine:2")


def test_an_image_that_is_still_pulled_gets_no_further_name(client: Hypeman, served: Served) -> None:
    name = "docker.io/library/big:1"
    served.catalog.pulls.stages = [pull_under_way(name), pull_under_way(name)]
    client.images.create(name=name)
    with pytest.raises(hypeman.ConflictError, match="image_not_ready"):
        client.images.tag(name, target="docker.io/library/mine:1")


def pull_under_way(name: str) -> PullView:
    created = datetime(2026, 1, 2, tzinfo=UTC)
    return PullView(
        parse_reference(name), LINUX_AMD64, PullStatus.PULLING, None, None, None, created, {}, 2, 1, 20, 10
    )


def test_stats_are_of_what_runs(client: Hypeman, served: Served) -> None:
    made = client.instances.create(name="web", image=IMAGE, size="128MB", vcpus=2)
    found = client.instances.stats("web")
    assert (found.instance_id, found.instance_name) == (made.id, "web")
    assert (found.allocated_vcpus, found.allocated_memory_bytes) == (2, 128 << 20)
    assert (found.cpu_seconds, found.memory_rss_bytes, found.memory_vms_bytes) == (1.5, 96 << 20, 1 << 30)
    assert (found.network_rx_bytes, found.network_tx_bytes) == (2048, 1024)
    assert found.memory_utilization_ratio == 0.75
    client.instances.stop("web")
    stopped = client.instances.stats("web")
    assert (stopped.cpu_seconds, stopped.memory_rss_bytes, stopped.memory_utilization_ratio) == (0, 0, None)


def test_an_image_in_use_is_kept(client: Hypeman) -> None:
    client.instances.create(name="web", image=IMAGE)
    with pytest.raises(hypeman.ConflictError, match="image_in_use"):
        client.images.delete(IMAGE)


def test_exec_merges_output_and_tells_the_exit_code(client: Hypeman, served: Served) -> None:
    served.fleet.put("web")
    result = exec_in(client, "web", ["fail", "oops", "3"])
    assert (result.output, result.exit_code) == (b"before oops", 3)


def test_exec_passes_stdin_environment_and_options(client: Hypeman, served: Served) -> None:
    served.fleet.put("web")
    result = exec_in(
        client, "web", ["cat"], stdin=[b"a" * 40_000, b"b", b"STOP"], cwd="/tmp", env={"K": "v"}, timeout=9
    )
    assert result.output == b"a" * 40_000 + b"b"
    command = served.fleet.commands[-1].command
    assert (command.cwd, command.env, command.timeout_s) == ("/tmp", {"K": "v"}, 9)


def test_exec_output_comes_in_messages_the_client_accepts(client: Hypeman, served: Served) -> None:
    served.fleet.put("web")
    assert len(exec_in(client, "web", ["big", "3000001"]).output) == 3_000_001


def test_exec_that_cannot_begin_says_why_and_ends_with_127(client: Hypeman, served: Served) -> None:
    served.fleet.put("web")
    result = exec_in(client, "web", ["echo"], cwd="/nowhere")
    assert (result.exit_code, b"no directory" in result.output) == (127, True)


def test_exec_on_a_terminal_is_told_its_size_and_each_new_one(client: Hypeman, served: Served) -> None:
    served.fleet.put("web")
    result = exec_in(
        client,
        "web",
        ["shell"],
        tty=True,
        rows=30,
        cols=100,
        resize=[(31, 101), (32, 102)],
        stdin=b"hi\rexit when resized twice\r",  # Once it ends, the client could send no more.
    )
    assert (b"size 30x100" in result.output, result.exit_code) == (True, 7)
    assert served.fleet.commands[0].command.tty == WindowSize(30, 100)


def test_exec_is_refused_before_it_begins_where_the_instance_does_not_run(
    client: Hypeman, served: Served
) -> None:
    served.fleet.put("web", State.STOPPED)
    with pytest.raises(InvalidStatus) as refused:
        exec_in(client, "web", ["echo"])
    assert refused.value.response.status_code == 409
    assert b'"invalid_state"' in refused.value.response.body


def test_a_refused_request_is_not_sent_again(served: Served) -> None:
    sent: list[httpx.Request] = []
    transport = httpx.Client(event_hooks={"request": [sent.append]})
    served.fleet.put("web")
    with Hypeman(base_url=served.url, api_key=token(), http_client=transport) as client:
        with pytest.raises(hypeman.ConflictError):
            client.instances.fork("web", name="child")
        with pytest.raises(hypeman.InternalServerError):
            client.devices.list()
    assert len(sent) == 2


def calls_of_the_official_client() -> list[tuple[str, str]]:
    """Return every method and path of its synchronous resources."""
    spec = find_spec("hypeman")
    assert spec is not None
    assert spec.origin is not None
    pattern = re.compile(r'return self\._(get|post|put|patch|delete)\(\s*(?:path_template\()?"([^"]+)"')
    found = set()
    for path in (Path(spec.origin).parent / "resources").rglob("*.py"):
        found |= {(method.upper(), target) for method, target in pattern.findall(path.read_text())}
    assert len(found) > 55, "the pattern does not fit this version of the client"
    return sorted(found)


SUPPORTED = {
    ("POST", "/resources/memory/reclaim"),
    ("GET", "/instances/{id}/snapshot-schedule"),
    ("PUT", "/instances/{id}/snapshot-schedule"),
    ("DELETE", "/instances/{id}/snapshot-schedule"),
    ("GET", "/health"),
    ("GET", "/capabilities"),
    ("GET", "/resources"),
    ("GET", "/instances"),
    ("POST", "/instances"),
    ("GET", "/instances/{id}"),
    ("DELETE", "/instances/{id}"),
    ("PATCH", "/instances/{id}"),
    ("POST", "/instances/{id}/start"),
    ("POST", "/instances/{id}/stop"),
    ("POST", "/instances/{id}/standby"),
    ("POST", "/instances/{id}/restore"),
    ("POST", "/instances/{id}/snapshots"),
    ("POST", "/instances/{id}/snapshots/{snapshot_id}/restore"),
    ("GET", "/snapshots"),
    ("GET", "/snapshots/{snapshot_id}"),
    ("DELETE", "/snapshots/{snapshot_id}"),
    ("POST", "/snapshots/{snapshot_id}/fork"),
    ("POST", "/instances/{id}/fork"),
    ("GET", "/instances/{id}/wait"),
    ("GET", "/instances/{id}/auto-standby/status"),
    ("POST", "/instances/{id}/auto-standby/hold"),
    ("GET", "/instances/{id}/logs"),
    ("GET", "/instances/{id}/stat"),
    ("GET", "/instances/{id}/stats"),
    ("POST", "/images/{name}/tag"),
    ("POST", "/instances/{id}/volumes/{volume_id}"),
    ("DELETE", "/instances/{id}/volumes/{volume_id}"),
    ("GET", "/volumes"),
    ("POST", "/volumes"),
    ("POST", "/volumes/from-archive"),
    ("GET", "/volumes/{id}"),
    ("DELETE", "/volumes/{id}"),
    ("GET", "/images"),
    ("POST", "/images"),
    ("GET", "/images/{name}"),
    ("DELETE", "/images/{name}"),
}


def test_every_call_is_done_or_refused_as_not_supported_yet(served: Served) -> None:
    headers = {"Authorization": f"Bearer {token()}"}
    with httpx.Client(base_url=served.url, headers=headers) as plain:
        for method, path in calls_of_the_official_client():
            answer = plain.request(method, re.sub(r"\{\w+\}", "some", path), content=b"no json")
            if (method, path) in SUPPORTED:
                assert answer.status_code not in (405, 501), (method, path)
            else:
                assert (answer.status_code, answer.json()["code"]) == (501, "not_supported"), (method, path)
                assert answer.json()["fields"]["operation"]
