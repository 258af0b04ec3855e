"""From a record to what a VMM and a guest are told."""

import os
import time
from pathlib import Path
from typing import Final

from ramet.core.errors import Invalid
from ramet.core.ids import LayerId
from ramet.core.spec import InstanceRecord
from ramet.effects.site import Site
from ramet.guest.identity import ENTROPY_BYTES, GuestIdentity
from ramet.images.config import ImageConfig
from ramet.linux.plain_file import open_plain
from ramet.net.taps import Tap
from ramet.vmm.port import NO_FD, DiskImage, Machine, Nic
from ramet.wire.boot_config import BootConfig, BootVolume
from ramet.wire.messages import Network as GuestNetwork

CONFIG_DISK_BYTES: Final = 64 << 10
"""Fixed, because the disk is part of the device model. Larger environments are refused."""
ENV_DEFAULT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}


class ConfigTooLarge(Invalid):
    """Command and environment together do not fit the config disk."""

    code = "config_too_large"


class NoCommand(Invalid):
    """Neither the image nor the request says what to run."""

    code = "no_command"


def guest_network(site: Site, record: InstanceRecord) -> GuestNetwork | None:
    """Return what the guest is told of its network, None without one."""
    if record.identity.slot is None:
        return None
    endpoint, facts = site.network.endpoint(record.id), site.network.facts
    return GuestNetwork(endpoint.mac, endpoint.ip, facts.prefix_length, facts.gateway, facts.dns)


def guest_identity(site: Site, record: InstanceRecord) -> GuestIdentity:
    """Return who the guest of this instance is."""
    return GuestIdentity(record.name, record.identity.machine_id, guest_network(site, record))


def write_config_disk(site: Site, record: InstanceRecord, path: Path) -> None:
    """Write the disk that tells the guest what to run and who it is.

    Raises:
        NoCommand, ConfigTooLarge, ImageNotFound: it cannot be told.
        OSError: the disk is full.
    """
    image = site.images.config_of(record.spec.image_digest)
    config = BootConfig(
        argv=_command(record, image),
        env=_environment(record, image),
        cwd=image.working_dir or "/",
        user=image.user,
        hostname=record.name,
        machine_id=record.identity.machine_id,
        clock_ns=time.time_ns(),
        entropy=os.urandom(ENTROPY_BYTES),
        network=guest_network(site, record),
        overlay_parts=record.spec.disk_parts if record.spec.overlay_parts else (),
        volumes=tuple(
            BootVolume(mount.path, mount.is_read_only, mount.overlay_part) for mount in record.spec.volumes
        ),
        skip_agent=record.spec.skip_guest_agent,
    )
    content = config.to_disk()
    if len(content) > CONFIG_DISK_BYTES:
        raise ConfigTooLarge(
            f"command and environment take {len(content)} bytes, {CONFIG_DISK_BYTES} fit",
            remedy="pass large values as files",
        )
    with open(open_plain(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), "wb") as disk:
        disk.write(content)
        disk.truncate(CONFIG_DISK_BYTES)


def make_machine(site: Site, record: InstanceRecord, layer: LayerId, tap: Tap | None) -> Machine:
    """Return what the VMM is told to build.

    Raises:
        LayerBroken, ImageNotFound, VolumeNotFound, VolumeBroken: a file of it is missing.
        VolumeUnclean: a volume that it reads cannot be read like that.
    """
    folder = site.instance_folder(record.id)
    nic = None
    if tap is not None:
        mac = site.network.endpoint(record.id).mac
        nic = Nic(mac, tap.fd) if tap.is_open else Nic(mac, NO_FD, tap.name)
    return Machine(
        instance=record.id,
        folder=folder,
        vcpu_count=record.spec.vcpu_count,
        memory_bytes=record.spec.memory_bytes,
        kernel=site.kit.kernel,
        initramfs=site.kit.initramfs,
        root=site.image_rootfs(record),
        overlay=DiskImage(site.layers.chain(layer)),
        config=folder / "config.img",
        nic=nic,
        volumes=tuple(
            DiskImage(((site.volumes.disk_of(mount), "raw"),), is_read_only=mount.is_read_only)
            for mount in record.spec.volumes
        ),
        plug_bytes=record.spec.hotplug_bytes,
        disk_io_bytes_per_s=record.spec.disk_io_bytes_per_s,
    )


def _command(record: InstanceRecord, image: ImageConfig) -> tuple[str, ...]:
    """Entrypoint and cmd as Docker joins them: an overridden entrypoint drops the image's cmd."""
    spec = record.spec
    if spec.entrypoint is not None:
        argv = spec.entrypoint + (spec.cmd or ())
    else:
        argv = image.entrypoint + (image.cmd if spec.cmd is None else spec.cmd)
    if not argv:
        raise NoCommand(f"{spec.image} names no command", remedy="give one: ramet run IMAGE COMMAND")
    return argv


def _environment(record: InstanceRecord, image: ImageConfig) -> dict[str, str]:
    own = dict(pair.partition("=")[::2] for pair in image.env)
    return {**ENV_DEFAULT, **own, **record.spec.env}
