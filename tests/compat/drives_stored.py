"""The drives of snapshots and their schedules; see `drives`."""

from datetime import timedelta
from typing import Any

import hypeman
import pytest

from tests.compat.drives import Place, drives


async def snapshot(at: Place, **fields: Any) -> Any:
    """Take a snapshot, with memory, of an instance that runs."""
    await at.boot()
    return await at.call("instances.snapshots.create", id=at.name, kind="Standby", **fields)


@drives("instances.snapshots.create")
async def create_snapshot(at: Place) -> None:
    made = await snapshot(
        at, name="warm", tags={"of": at.name}, compression={"enabled": True, "algorithm": "zstd", "level": 3}
    )
    assert (made.kind, made.name, made.tags) == ("Standby", "warm", {"of": at.name})
    assert (made.source_instance_name, made.source_hypervisor) == (at.name, at.hypervisor)
    assert made.compression.algorithm == "zstd"
    assert made.compression_state in ("compressing", "compressed")
    with pytest.raises(hypeman.ConflictError, match="invalid_state"):
        await at.call("instances.snapshots.create", id=at.name, kind="Stopped")
    await at.call("instances.stop", id=at.name)
    cold = await at.call("instances.snapshots.create", id=at.name, kind="Stopped")
    assert (cold.kind, cold.name, cold.compression_state) == ("Stopped", None, None)


@drives("instances.snapshots.restore")
async def restore_snapshot(at: Place) -> None:
    made = await snapshot(at)
    await at.call("instances.stop", id=at.name)
    back = await at.call(
        "instances.snapshots.restore",
        snapshot_id=made.id,
        id=at.name,
        target_state="Standby",
        target_hypervisor=at.hypervisor,
    )
    assert back.state == "Standby"
    assert (await at.call("instances.snapshots.restore", snapshot_id=made.id, id=at.name)).state == "Running"


async def schedule(at: Place) -> Any:
    """Make an instance that a snapshot is taken of every hour."""
    await at.boot()
    return await at.call(
        "instances.snapshot_schedule.update",
        id=at.name,
        interval="1h",
        retention={"max_count": 24, "max_age": "720h"},
        metadata={"of": at.name},
        name_prefix="hourly",
    )


@drives("instances.snapshot_schedule.update")
async def set_schedule(at: Place) -> None:
    made = await schedule(at)
    assert (made.interval, made.name_prefix, made.metadata) == ("1h", "hourly", {"of": at.name})
    assert (made.retention.max_count, made.retention.max_age) == (24, "720h")
    assert timedelta(hours=1) <= made.next_run_at - made.created_at <= timedelta(hours=1, minutes=1)
    assert (made.last_run_at, made.last_snapshot_id, made.last_error) == (None, None, None)
    again = await at.call(
        "instances.snapshot_schedule.update", id=made.instance_id, interval="1m", retention={"max_count": 1}
    )
    assert (again.created_at, again.name_prefix, again.retention.max_age) == (made.created_at, None, None)
    assert again.next_run_at < made.next_run_at
    with pytest.raises(hypeman.BadRequestError, match="max_count or max_age"):
        await at.call("instances.snapshot_schedule.update", id=at.name, interval="1h", retention={})


@drives("instances.snapshot_schedule.get")
async def get_schedule(at: Place) -> None:
    made = await schedule(at)
    assert await at.call("instances.snapshot_schedule.get", id=at.name) == made
    await at.boot("-without")
    with pytest.raises(hypeman.NotFoundError, match="snapshot_schedule_not_found"):
        await at.call("instances.snapshot_schedule.get", id=f"{at.name}-without")
    await at.call("instances.fork", id=at.name, name=f"{at.name}-child", from_running=True)
    with pytest.raises(hypeman.NotFoundError, match="snapshot_schedule_not_found"):
        await at.call("instances.snapshot_schedule.get", id=f"{at.name}-child")


@drives("instances.snapshot_schedule.delete")
async def delete_schedule(at: Place) -> None:
    await schedule(at)
    await at.call("instances.snapshot_schedule.delete", id=at.name)
    for method in ("get", "delete"):
        with pytest.raises(hypeman.NotFoundError, match="snapshot_schedule_not_found"):
            await at.call(f"instances.snapshot_schedule.{method}", id=at.name)


@drives("snapshots.list")
async def list_snapshots(at: Place) -> None:
    made = await snapshot(at, name="warm", tags={"of": at.name})
    source = made.source_instance_id
    for filters in (
        {"source_instance_id": source},
        {"tags": {"of": at.name}},
        {"source_instance_id": source, "kind": "Standby", "name": "warm"},
    ):
        assert [found.id for found in await at.call("snapshots.list", **filters)] == [made.id]
    assert await at.call("snapshots.list", source_instance_id=source, kind="Stopped") == []


@drives("snapshots.get")
async def get_snapshot(at: Place) -> None:
    made = await snapshot(at)
    assert (await at.call("snapshots.get", snapshot_id=made.id)).id == made.id
    with pytest.raises(hypeman.NotFoundError, match="snapshot_not_found"):
        await at.call("snapshots.get", snapshot_id="nobody")


@drives("snapshots.delete")
async def delete_snapshot(at: Place) -> None:
    made = await snapshot(at)
    await at.call("instances.delete", id=at.name)  # What is stored outlives its source.
    await at.call("snapshots.delete", snapshot_id=made.id)
    with pytest.raises(hypeman.NotFoundError, match="snapshot_not_found"):
        await at.call("snapshots.get", snapshot_id=made.id)


@drives("snapshots.fork")
async def fork_snapshot(at: Place) -> None:
    made = await snapshot(at)
    arguments = {"snapshot_id": made.id, "target_hypervisor": at.hypervisor}
    child = await at.call("snapshots.fork", name=f"{at.name}-child", **arguments)
    assert (child.state, child.hypervisor) == ("Running", at.hypervisor)
    slept = await at.call("snapshots.fork", name=f"{at.name}-slept", target_state="Standby", **arguments)
    assert (slept.state, slept.has_snapshot) == ("Standby", True)
