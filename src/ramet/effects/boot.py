"""Booting an instance: folder, disk, endpoint, VMM, in this order, and back if any of it fails."""

import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
from anyio import to_thread

from ramet.core.errors import Broken
from ramet.core.ids import LayerId
from ramet.core.spec import InstanceRecord
from ramet.effects.machine import make_machine, write_config_disk
from ramet.effects.site import Rig, Site
from ramet.store.paths import write_whole


async def boot(site: Site, record: InstanceRecord) -> tuple[Rig, LayerId]:
    """Start the VMM of a new instance; its guest is not awaited.

    Raises:
        RametError: it did not work, and nothing of it is left but the reserved endpoint.
    """
    async with undone_on_failure(site, record) as made:
        await to_thread.run_sync(site.layers.ensure_base, record.spec.overlay_bytes)
        layer = made.layer = site.layers.create(record.spec.overlay_bytes)
        prepare_folder(site, record)
        async with attached(site, record) as tap_fd:
            machine = make_machine(site, record, layer, tap_fd)
            async with site.stages.vmm_start:
                vm = await site.driver.boot(machine)
        rig = site.rigs[record.id] = Rig(record.id, vm, layer)
        return rig, layer


def prepare_folder(site: Site, record: InstanceRecord) -> None:
    """Make the folder of an instance, with its config disk and its spec.

    Raises:
        Broken: the disk is full.
        Invalid: the guest cannot be told what it should.
    """
    folder = site.instance_folder(record.id)
    try:
        folder.mkdir(mode=0o700)
        write_config_disk(site, record, folder / "config.img")
        write_whole(folder / "spec.json", record.to_json().encode(), durable=False)
    except OSError as error:
        raise Broken(f"the folder of instance {record.name} cannot be written: {error.strerror}") from error


@asynccontextmanager
async def attached(site: Site, record: InstanceRecord) -> AsyncIterator[int | None]:
    """Hold a TAP open, to be handed to the VMM started inside; None without a network.

    Outside, the VMM holds it alone, or nobody does and it is gone.
    """
    if record.identity.slot is None:
        yield None
        return
    tap = await site.network.attach(record.id)
    try:
        yield tap.fd
    finally:
        tap.close()


@dataclass(slots=True)
class Made:
    """What has been made so far that the record does not name yet."""

    layer: LayerId | None = None


@asynccontextmanager
async def undone_on_failure(site: Site, record: InstanceRecord) -> AsyncIterator[Made]:
    """If the inside fails or is cancelled, take down all of the instance but its reserved endpoint."""
    made = Made()
    try:
        yield made
    except BaseException:
        with anyio.CancelScope(shield=True):
            async with (
                AsyncExitStack() as undo
            ):  # From the last to the first, each whatever became of another.
                if record.identity.slot is not None:
                    undo.push_async_callback(site.network.detach, record.id)
                undo.push_async_callback(to_thread.run_sync, remove_folder, site.instance_folder(record.id))
                if made.layer is not None:
                    undo.callback(site.layers.release, made.layer)
                rig = site.rigs.pop(record.id, None)
                if rig is not None:
                    undo.push_async_callback(rig.vm.kill)
                    undo.push_async_callback(rig.close)
        raise


def remove_folder(folder: Path) -> None:
    """Remove the folder of an instance, if there is one."""
    if folder.exists():
        shutil.rmtree(folder)
