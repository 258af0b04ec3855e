"""The drives of the client's methods on volumes."""

import io
import tarfile
from typing import Any

import hypeman
import pytest

from tests.compat.drives import Place, drives


def packed() -> bytes:
    """Return a tar.gz with one file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("file")
        info.size = 7
        tar.addfile(info, io.BytesIO(b"content"))
    return buffer.getvalue()


async def volume(at: Place, suffix: str = "", **fields: Any) -> Any:
    """Make a volume of one gigabyte."""
    return await at.call("volumes.create", name=at.name + suffix, size_gb=1, **fields)


@drives("volumes.create")
async def create_volume(at: Place) -> None:
    made = await volume(at, id=f"{at.name}-id", tags={"of": at.name})
    assert (made.id, made.name, made.size_gb) == (f"{at.name}-id", at.name, 1)
    assert (made.tags, made.attachments) == ({"of": at.name}, [])
    assert len((await volume(at, "-other")).id) == 24
    with pytest.raises(hypeman.ConflictError, match="volume_name_taken"):
        await volume(at)
    mount = {"volume_id": at.name, "mount_path": "/data"}
    held = await at.boot(volumes=[mount])
    assert [each.to_dict() for each in held.volumes] == [
        {**mount, "volume_id": made.id, "readonly": False, "overlay": False, "overlay_size": None}
    ]
    with pytest.raises(hypeman.ConflictError, match="volume_in_use"):
        await at.boot("-second", volumes=[mount])


@drives("volumes.create_from_archive")
async def create_volume_from_archive(at: Place) -> None:
    arguments = {"name": at.name, "size_gb": 1, "id": f"{at.name}-id", "tags": {"of": at.name}}
    made = await at.call("volumes.create_from_archive", body=packed(), **arguments)
    assert (made.id, made.name, made.size_gb, made.tags) == (
        f"{at.name}-id",
        at.name,
        1,
        {"of": at.name},
    )
    with pytest.raises(hypeman.BadRequestError, match="volume_archive_invalid"):
        await at.call("volumes.create_from_archive", body=b"no archive", name=f"{at.name}-not", size_gb=1)
    # Many read it, each with what it writes for itself.
    mount = {"volume_id": made.id, "mount_path": "/data", "readonly": True}
    own = {**mount, "overlay": True, "overlay_size": "64MB"}
    assert (await at.boot(volumes=[mount])).volumes[0].readonly
    other = await at.boot("-other", volumes=[own])
    assert (other.volumes[0].overlay, other.volumes[0].overlay_size) == (True, "64MB")
    child = await at.call("instances.fork", id=other.id, name=f"{at.name}-child", from_running=True)
    assert child.volumes == other.volumes


@drives("volumes.list")
async def list_volumes(at: Place) -> None:
    for suffix in ("-a", "-b"):
        await volume(at, suffix, tags={"of": at.name, "is": suffix})

    async def named(**tags: str) -> list[str]:
        return [found.name for found in await at.call("volumes.list", tags={"of": at.name, **tags})]

    assert await named() == [f"{at.name}-a", f"{at.name}-b"]
    assert await named(**{"is": "-b"}) == [f"{at.name}-b"]
    assert await named(**{"is": "-c"}) == []


@drives("volumes.get")
async def get_volume(at: Place) -> None:
    made = await volume(at)
    for ref in (made.id, made.name, made.id[:12]):
        assert (await at.call("volumes.get", id=ref)).id == made.id
    with pytest.raises(hypeman.NotFoundError, match="volume_not_found"):
        await at.call("volumes.get", id=f"{at.name}-nothing")


@drives("volumes.delete")
async def delete_volume(at: Place) -> None:
    await volume(at)
    held = await at.boot(volumes=[{"volume_id": at.name, "mount_path": "/data"}])
    with pytest.raises(hypeman.ConflictError, match="volume_in_use"):
        await at.call("volumes.delete", id=at.name)
    await at.call("instances.delete", id=held.id)
    await at.call("volumes.delete", id=at.name)
    with pytest.raises(hypeman.NotFoundError, match="volume_not_found"):
        await at.call("volumes.get", id=at.name)


@drives("instances.volumes.attach")
async def attach_volume(at: Place) -> None:
    made = await volume(at)
    held = await at.boot()
    arguments = {"volume_id": at.name, "id": at.name, "mount_path": "/data"}
    with pytest.raises(hypeman.ConflictError, match="invalid_state"):
        await at.call("instances.volumes.attach", **arguments)
    await at.call("instances.stop", id=at.name)
    got = await at.call("instances.volumes.attach", readonly=True, **arguments)
    assert [(each.volume_id, each.readonly) for each in got.volumes] == [(made.id, True)]
    (attachment,) = (await at.call("volumes.get", id=at.name)).attachments
    assert (attachment.instance_id, attachment.mount_path, attachment.readonly) == (held.id, "/data", True)
    with pytest.raises(hypeman.ConflictError, match="mount_taken"):
        await at.call("instances.volumes.attach", **arguments)
    assert (await at.call("instances.start", id=at.name)).state == "Running"


@drives("instances.volumes.detach")
async def detach_volume(at: Place) -> None:
    await volume(at)
    await at.boot(volumes=[{"volume_id": at.name, "mount_path": "/data"}])
    arguments = {"volume_id": at.name, "id": at.name}
    with pytest.raises(hypeman.ConflictError, match="invalid_state"):
        await at.call("instances.volumes.detach", **arguments)
    await at.call("instances.stop", id=at.name)
    assert (await at.call("instances.volumes.detach", **arguments)).volumes == []
    with pytest.raises(hypeman.NotFoundError, match="volume_not_attached"):
        await at.call("instances.volumes.detach", **arguments)
    assert (await at.call("volumes.get", id=at.name)).attachments == []
