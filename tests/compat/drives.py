"""One drive for each method that works: it calls the method with everything it can be told, and looks at what
comes of it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import anyio
import hypeman
import pytest

from ramet.core.units import parse_size
from tests.compat import supervised
from tests.compat.client import Calls

IMAGE = "demo:1"
PULL_TIMEOUT_S: Final = 60.0
POLL_INTERVAL_S: Final = 0.02
ENDED: Final = ("ready", "failed")
SMALL: Final = {"image": IMAGE, "size": "64MB", "overlay_size": "64MB", "vcpus": 1}


@dataclass
class Place:
    """Where a drive is: the client, a name of its own, the registry, and a folder.

    Names that it takes for instances begin with its own.
    """

    call: Calls
    name: str
    registry: str
    folder: Path
    hypervisor: str = "qemu"
    instance: dict[str, Any] = field(default_factory=lambda: dict(SMALL))

    def bytes_of(self, field: str) -> int:
        """Return the size in bytes that small instances have by `field`."""
        return parse_size(self.instance[field])

    async def boot(self, suffix: str = "", **fields: Any) -> Any:
        """Make a small instance, which runs; `suffix` ends its name."""
        made = await self.call("instances.create", name=self.name + suffix, **{**self.instance, **fields})
        assert made.state == "Running"
        return made

    async def wait_pulled(self, name: str) -> Any:
        """Return the image `name` once its pull has ended."""
        with anyio.fail_after(PULL_TIMEOUT_S):
            while (found := await self.call("images.get", name=name)).status not in ENDED:  # noqa: ASYNC110
                await anyio.sleep(POLL_INTERVAL_S)
        return found


Drive = Callable[[Place], Awaitable[None]]
DRIVES: dict[str, Drive] = {}


def drives(method: str) -> Callable[[Drive], Drive]:
    """Make what follows the drive of `method`."""

    def register(drive: Drive) -> Drive:
        assert method not in DRIVES, method
        DRIVES[method] = drive
        return drive

    return register


@drives("health.check")
async def check_health(at: Place) -> None:
    assert (await at.call("health.check")).status == "ok"


@drives("capabilities.get")
async def get_capabilities(at: Place) -> None:
    found = await at.call("capabilities.get")
    assert (found.host.os, found.host.arch) == ("linux", "amd64")
    assert at.hypervisor in [runtime.name for runtime in found.runtimes if runtime.available]
    assert found.default_runtime.available


@drives("resources.get")
async def get_resources(at: Place) -> None:
    made = await at.boot(disk_io_bps="100MB/s")
    found = await at.call("resources.get")
    for status in (found.cpu, found.memory, found.disk, found.network, found.disk_io):
        assert status.available == max(0, status.effective_limit - status.allocated)
    (own,) = [each for each in found.allocations if each.instance_id == made.id]
    assert (own.instance_name, own.cpu, own.disk_bytes) == (made.name, 1, at.bytes_of("overlay_size"))
    assert own.memory_bytes >= at.bytes_of("size")
    assert own.disk_io_bps == 100_000_000
    assert found.disk_breakdown.overlays_bytes > 0


@drives("resources.reclaim_memory")
async def reclaim_memory(at: Place) -> None:
    made = await at.boot(size="1GB")

    async def ask(reclaim_bytes: int, **arguments: Any) -> tuple[Any, Any]:
        found = await at.call("resources.reclaim_memory", reclaim_bytes=reclaim_bytes, **arguments)
        assert found.requested_reclaim_bytes == reclaim_bytes
        assert found.host_available_bytes > 0
        (own,) = [action for action in found.actions if action.instance_id == made.id]
        return found, own

    dry, own = await ask(1 << 40, dry_run=True)
    assert (own.status, own.hypervisor, own.assigned_memory_bytes) == ("planned", at.hypervisor, 1 << 30)
    assert own.protected_floor_bytes == own.planned_target_guest_memory_bytes == 512 << 20
    assert (own.target_guest_memory_bytes, own.applied_reclaim_bytes) == (1 << 30, 0)
    assert (dry.planned_reclaim_bytes >= 512 << 20, dry.applied_reclaim_bytes) == (True, 0)
    held, own = await ask(1 << 40, hold_for="1h", reason="a test")
    assert (own.status, own.target_guest_memory_bytes, own.error) == ("applied", 512 << 20, None)
    assert held.applied_reclaim_bytes >= own.applied_reclaim_bytes == 512 << 20
    assert timedelta(minutes=59) < held.hold_until - datetime.now(UTC) <= timedelta(hours=1)
    given, own = await ask(0)
    assert (own.status, own.previous_target_guest_memory_bytes) == ("applied", 512 << 20)
    assert (own.target_guest_memory_bytes, given.hold_until) == (1 << 30, None)
    with pytest.raises(hypeman.BadRequestError, match="reclaim_bytes"):
        await at.call("resources.reclaim_memory", reclaim_bytes=-1)


# Images


@drives("images.create")
async def pull_image(at: Place) -> None:
    name = f"{at.registry}/team/{at.name}:latest"
    credentials = {"username": "me", "password": "secret"}
    asked = await at.call(
        "images.create", name=name, platform="linux/amd64", tags={"of": at.name}, credentials=credentials
    )
    assert (asked.name, asked.platform) == (name, "linux/amd64")
    found = await at.wait_pulled(name)
    assert (found.status, found.cmd, found.tags) == ("ready", ["sleep"], {"of": at.name})


@drives("images.list")
async def list_images(at: Place) -> None:
    assert IMAGE in [found.name.rpartition("/")[2] for found in await at.call("images.list")]
    assert await at.call("images.list", tags={"of": "nobody"}) == []


@drives("images.get")
async def get_image(at: Place) -> None:
    found = await at.call("images.get", name=IMAGE)
    assert (found.status, found.platform, found.queue_position) == ("ready", "linux/amd64", None)
    assert found.size_bytes > 0
    assert (await at.call("images.get", name=found.digest)).digest == found.digest
    with pytest.raises(hypeman.NotFoundError, match="image_not_found"):
        await at.call("images.get", name="nobody:1")


@drives("images.delete")
async def delete_image(at: Place) -> None:
    name = f"{at.registry}/team/{at.name}:latest"
    await at.call("images.create", name=name)
    await at.boot("-pulled", image=name)
    await at.call("instances.delete", id=f"{at.name}-pulled")
    await at.call("images.delete", name=name)
    with pytest.raises(hypeman.NotFoundError, match="image_not_found"):
        await at.call("images.get", name=name)
    await at.boot()
    with pytest.raises(hypeman.ConflictError, match="image_in_use"):
        await at.call("images.delete", name=IMAGE)


@drives("images.tag")
async def tag_image(at: Place) -> None:
    target = f"docker.io/library/{at.name}:mine"
    made = await at.call("images.tag", name=IMAGE, target=target)
    assert (made.name, made.status) == (target, "ready")
    again = await at.boot(image=target)
    assert again.image == target
    with pytest.raises(hypeman.NotFoundError, match="image_not_found"):
        await at.call("images.tag", name="nobody:1", target=target)
    with pytest.raises(hypeman.BadRequestError, match="invalid_reference"):
        await at.call("images.tag", name=IMAGE, target=f"demo@{made.digest}")
    await at.call("images.delete", name=target)


# Instances


@drives("instances.create")
async def create_instance(at: Place) -> None:
    data = await at.call("volumes.create", name=at.name, size_gb=1)
    made = await at.boot(
        volumes=[{"volume_id": at.name, "mount_path": "/data"}],
        auto_standby={
            "enabled": True,
            "idle_timeout": "1h",
            "ignore_source_cidrs": ["10.0.0.0/8"],
            "ignore_destination_ports": [22],
        },
        cmd=["forever"],
        disk_io_bps="100MB/s",
        entrypoint=["sleep"],
        env={"KEY": "value"},
        hypervisor=at.hypervisor,
        network={"enabled": True, "bandwidth_download": "1Gbps", "bandwidth_upload": "80Mbps"},
        platform="linux/amd64",
        **supervised.ASKED,
        skip_kernel_headers=True,
        snapshot_policy={
            "compression": {"enabled": True, "algorithm": "lz4"},
            "standby_compression_delay": "5m",
        },
        tags={"of": at.name},
        ttl="1h",
    )
    assert timedelta(0) < made.expires_at - made.created_at <= timedelta(hours=1, minutes=1)
    assert (made.name, made.size, made.overlay_size, made.vcpus) == (at.name, "64MB", "64MB", 1)
    assert (made.hypervisor, made.platform) == (at.hypervisor, "linux/amd64")
    assert (made.env, made.tags) == ({"KEY": "value"}, {"of": at.name})
    assert (made.auto_standby.enabled, made.auto_standby.idle_timeout) == (True, "1h")
    assert made.auto_standby.ignore_source_cidrs == ["10.0.0.0/8"]
    assert made.auto_standby.ignore_destination_ports == [22]
    supervised.check_made(made)
    assert [(each.volume_id, each.mount_path) for each in made.volumes] == [(data.id, "/data")]
    assert made.network.enabled
    assert made.network.ip
    assert made.network.mac
    assert (made.network.bandwidth_download, made.network.bandwidth_upload) == ("1Gbps", "80Mbps")
    assert made.disk_io_bps == "100MB/s"
    assert made.snapshot_policy.compression.algorithm == "lz4"
    assert made.created_at <= made.started_at
    moment = datetime(datetime.now(UTC).year + 1, 2, 3, tzinfo=UTC)
    alone = await at.boot("-alone", network={"enabled": False}, expires_at=moment, skip_guest_agent=True)
    assert alone.expires_at == moment
    with pytest.raises(hypeman.ConflictError, match="guest_agent_skipped"):
        await at.call("instances.stat", id=alone.id, path="/")
    assert (alone.network.enabled, alone.network.ip) == (False, None)
    with pytest.raises(hypeman.ConflictError, match="name_taken"):
        await at.boot()


@drives("instances.list")
async def list_instances(at: Place) -> None:
    await at.boot("-a", tags={"of": at.name, "is": "a"})
    await at.boot("-b", tags={"of": at.name, "is": "b"})
    await at.call("instances.stop", id=f"{at.name}-b")

    async def named(**filters: Any) -> list[str]:
        return [found.name for found in await at.call("instances.list", **filters)]

    assert await named(tags={"of": at.name}) == [f"{at.name}-a", f"{at.name}-b"]
    assert await named(tags={"of": at.name}, state="Stopped") == [f"{at.name}-b"]
    assert await named(tags={"of": at.name, "is": "a"}) == [f"{at.name}-a"]
    assert await named(tags={"of": at.name, "is": "c"}) == []


@drives("instances.get")
async def get_instance(at: Place) -> None:
    made = await at.boot()
    for ref in (made.id, made.name, made.id[:12]):
        assert (await at.call("instances.get", id=ref)).id == made.id
    with pytest.raises(hypeman.NotFoundError, match="instance_not_found"):
        await at.call("instances.get", id=f"{at.name}-nobody")


@drives("instances.delete")
async def delete_instance(at: Place) -> None:
    for graceful in (True, False):
        await at.boot()
        await at.call("instances.delete", id=at.name, graceful_shutdown=graceful)
        with pytest.raises(hypeman.NotFoundError, match="instance_not_found"):
            await at.call("instances.get", id=at.name)


@drives("instances.stop")
async def stop_instance(at: Place) -> None:
    await at.boot()
    stopped = await at.call("instances.stop", id=at.name)
    assert (stopped.state, stopped.has_snapshot) == ("Stopped", False)
    assert stopped.exit_code is not None
    assert stopped.stopped_at >= stopped.started_at
    with pytest.raises(hypeman.ConflictError, match="invalid_state"):
        await at.call("instances.stop", id=at.name)


@drives("instances.start")
async def start_instance(at: Place) -> None:
    await at.boot()
    with pytest.raises(hypeman.ConflictError, match="invalid_state"):
        await at.call("instances.start", id=at.name)
    await at.call("instances.stop", id=at.name)
    again = await at.call("instances.start", id=at.name, entrypoint=["sleep"], cmd=["7"])
    assert (again.state, again.exit_code) == ("Running", None)


@drives("instances.standby")
async def put_to_standby(at: Place) -> None:
    await at.boot()
    slept = await at.call(
        "instances.standby", id=at.name, compression={"enabled": True}, compression_delay="1m"
    )
    assert (slept.state, slept.has_snapshot) == ("Standby", True)
    with pytest.raises(hypeman.ConflictError, match="invalid_state"):
        await at.call("instances.standby", id=at.name)


@drives("instances.restore")
async def restore_instance(at: Place) -> None:
    await at.boot()
    with pytest.raises(hypeman.ConflictError, match="invalid_state"):
        await at.call("instances.restore", id=at.name)
    await at.call("instances.standby", id=at.name)
    assert (await at.call("instances.restore", id=at.name)).state == "Running"


@drives("instances.update")
async def update_instance(at: Place) -> None:
    await at.boot()
    changed = await at.call(
        "instances.update", id=at.name, auto_standby={"enabled": True, "idle_timeout": "1s"}
    )
    assert (changed.auto_standby.enabled, changed.auto_standby.idle_timeout) == (True, "1s")
    found = await at.call("instances.wait", id=at.name, state="Standby", api_timeout="1m")
    assert found.state == "Standby"
    never = await at.call("instances.update", id=at.name, ttl="0s")
    assert never.expires_at is None
    off = await at.call("instances.update", id=at.name, auto_standby={"enabled": False})
    assert (off.state, off.auto_standby.enabled, off.auto_standby.idle_timeout) == ("Standby", False, "1s")
    asked = await at.call("instances.update", id=at.name, health_check={"http": {"port": 8080}})
    assert (asked.health_check.type, asked.health_check.http.path) == ("http", "/")
    assert asked.health_status.status == "unknown"  # It sleeps.
    again = await at.call("instances.update", id=at.name, restart_policy={"policy": "always"})
    assert (again.restart_policy.policy, again.restart_policy.backoff) == ("always", "5s")
    assert again.restart_status.next_attempt_at is None
    moment = datetime.now(UTC) + timedelta(seconds=1)
    last = await at.call("instances.update", id=at.name, expires_at=moment)
    assert abs(last.expires_at - moment) < timedelta(milliseconds=2)
    with anyio.fail_after(PULL_TIMEOUT_S):
        while at.name in [found.name for found in await at.call("instances.list")]:  # noqa: ASYNC110
            await anyio.sleep(POLL_INTERVAL_S)


@drives("instances.auto_standby.status")
async def tell_when_it_sleeps(at: Place) -> None:
    made = await at.boot(auto_standby={"enabled": True, "idle_timeout": "1h"})
    found = await at.call("instances.auto_standby.status", id=at.name)
    assert (found.status, found.reason) == ("idle_countdown", "idle_timeout_not_elapsed")
    assert found.next_standby_at > found.idle_since >= made.created_at
    soon = at.name + "-soon"
    await at.boot("-soon", auto_standby={"enabled": True, "idle_timeout": "1s"})
    assert (await at.call("instances.wait", id=soon, state="Standby", api_timeout="1m")).state == "Standby"
    assert (await at.call("instances.auto_standby.status", id=soon)).reason == "instance_not_running"


@drives("instances.auto_standby.hold")
async def hold_awake(at: Place) -> None:
    await at.boot(auto_standby={"enabled": True, "idle_timeout": "1h"})
    held = await at.call("instances.auto_standby.hold", id=at.name)
    assert held.hold_until == held.next_standby_at
    await at.call("instances.standby", id=at.name)
    with pytest.raises(hypeman.ConflictError, match="instance_in_standby"):
        await at.call("instances.auto_standby.hold", id=at.name)


@drives("instances.fork")
async def fork_instance(at: Place) -> None:
    source = await at.boot()
    with pytest.raises(hypeman.ConflictError):
        await at.call("instances.fork", id=at.name, name=f"{at.name}-not")
    child = await at.call("instances.fork", id=at.name, name=f"{at.name}-child", from_running=True)
    assert (child.state, child.image, child.size) == ("Running", source.image, source.size)
    assert child.id != source.id
    assert child.network.ip != source.network.ip
    for state in ("Stopped", "Standby"):
        name = f"{at.name}-{state.lower()}"
        made = await at.call("instances.fork", id=at.name, name=name, from_running=True, target_state=state)
        assert made.state == state


@drives("instances.wait")
async def wait_for_state(at: Place) -> None:
    await at.boot()
    found = await at.call("instances.wait", id=at.name, state="Running")
    assert (found.state, found.timed_out) == ("Running", False)
    late = await at.call("instances.wait", id=at.name, state="Standby", api_timeout="10ms")
    assert (late.state, late.timed_out) == ("Running", True)
    await at.call("instances.stop", id=at.name)
    never = await at.call("instances.wait", id=at.name, state="Running", api_timeout="5m")
    assert (never.state, never.timed_out) == ("Stopped", False)


@drives("instances.logs")
async def read_logs(at: Place) -> None:
    await at.boot()
    await at.call("instances.stop", id=at.name)
    for source in ("app", "vmm", "hypeman"):
        lines = await at.call("instances.logs", id=at.name, source=source, tail=5, follow=False)
        assert len(lines) <= 5
        assert all(isinstance(line, str) for line in lines)
    assert await at.call("instances.logs", id=at.name, source="hypeman", tail=0) == []
    # Following ends with the instance.
    assert await at.call("instances.logs", id=at.name, source="hypeman", tail=1, follow=True)


@drives("instances.stat")
async def stat_path(at: Place) -> None:
    await at.boot()
    found = await at.call("instances.stat", id=at.name, path="/etc", follow_links=True)
    assert (found.exists, found.is_dir, found.is_file, found.is_symlink) == (True, True, False, False)
    gone = await at.call("instances.stat", id=at.name, path="/nothing", follow_links=False)
    assert (gone.exists, gone.error) == (False, None)


@drives("instances.stats")
async def read_stats(at: Place) -> None:
    made = await at.boot()
    found = await at.call("instances.stats", id=at.name)
    assert (found.instance_id, found.instance_name, found.allocated_vcpus) == (made.id, at.name, 1)
    assert found.allocated_memory_bytes == at.bytes_of("size")
    assert found.cpu_seconds > 0
    assert 0 < found.memory_rss_bytes < found.memory_vms_bytes
    assert found.memory_utilization_ratio == found.memory_rss_bytes / found.allocated_memory_bytes
    await at.call("instances.standby", id=at.name)
    asleep = await at.call("instances.stats", id=at.name)
    assert (asleep.cpu_seconds, asleep.memory_rss_bytes, asleep.memory_utilization_ratio) == (0, 0, None)


# What speaks over WebSockets


@drives("lib.exec")
async def run_command(at: Place) -> None:
    await at.boot()
    done = await at.call(
        "lib.exec",
        instance_id=at.name,
        command=["cat"],
        stdin=[b"one", b"two", b"\x03"],
        cwd="/",
        env={"K": "v"},
        timeout=9,
        wait_for_agent=5,
        tty=True,
        rows=30,
        cols=100,
        resize=[(31, 101)],
    )
    assert done.output.startswith(b"onetwo")
    assert done.exit_code == 128 + 2  # ^C on its terminal.


@drives("lib.cp_to_instance")
async def copy_to_guest(at: Place) -> None:
    await at.boot()
    (at.folder / "tree").mkdir()
    (at.folder / "tree/file").write_bytes(b"content")
    (at.folder / "tree/link").symlink_to("file")
    await at.call(
        "lib.cp_to_instance",
        instance_id=at.name,
        src_path=at.folder / "tree",
        dst_path="/etc/tree",
        mode=0o750,
        archive=True,
        follow_symlinks=True,
    )
    folder = await at.call("instances.stat", id=at.name, path="/etc/tree")
    assert (folder.is_dir, folder.mode & 0o777) == (True, 0o750)
    followed = await at.call("instances.stat", id=at.name, path="/etc/tree/link")
    assert (followed.is_file, followed.size) == (True, len(b"content"))


@drives("lib.cp_from_instance")
async def copy_from_guest(at: Place) -> None:
    await at.boot()
    (at.folder / "file").write_bytes(b"content")
    await at.call(
        "lib.cp_to_instance", instance_id=at.name, src_path=at.folder / "file", dst_path="/etc/file"
    )
    await at.call(
        "lib.cp_from_instance",
        instance_id=at.name,
        src_path="/etc/file",
        dst_path=at.folder / "back",
        follow_symlinks=True,
        archive=False,
    )
    assert (at.folder / "back/file").read_bytes() == b"content"


from tests.compat import drives_stored  # noqa: E402,F401  # It registers those of snapshots and schedules.
