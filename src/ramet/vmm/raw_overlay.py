"""The disks of a VMM that reads raw files only: each layer is a whole disk, a copy of the one below.

In the VM's folder a link leads to the layer that is written to, always by the same name: the one that every
snapshot has for its disk. What a VMM really writes to is what it has open. For volumes it is the same.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from ramet.linux.clone import clone_file
from ramet.vmm.port import DiskImage, Machine, VmmFailed

OVERLAY_LINK: Final = "overlay.raw"


def layers_of(image: DiskImage) -> tuple[Path, Path | None]:
    """Return the file that is written, and that of which it is to be a copy before it is."""
    paths = [path for path, _ in image.layers]
    return paths[0], paths[1] if len(paths) > 1 else None


def volume_link(index: int | str) -> str:
    """Return what the link to the volume of that number, or pattern, is called."""
    return f"volume{index}.raw"


def written_by(machine: Machine) -> list[Path]:
    """Return the files that the disks of `machine` are written to."""
    disks = (machine.overlay, *machine.volumes)
    return [layers_of(disk)[0] for disk in disks if not disk.is_read_only]


def read_by(machine: Machine) -> list[Path]:
    """Return the files of its volumes that are read only."""
    return [layers_of(volume)[0] for volume in machine.volumes if volume.is_read_only]


def fill_disks(machine: Machine) -> None:
    """Have each disk of `machine` be a copy of what it stands on, and the links in its folder lead to them.

    Raises:
        OSError: there is no room.
    """
    disks = {OVERLAY_LINK: machine.overlay}
    disks |= {volume_link(index): volume for index, volume in enumerate(machine.volumes)}
    for name, disk in disks.items():
        top, below = layers_of(disk)
        if below is not None and top.stat().st_size == 0:
            clone_file(below, top)
        _link(machine.folder / name, top)


def link_overlay(folder: Path, layer: Path) -> None:
    """Have the link in `folder` lead to `layer`.

    Raises:
        OSError: it cannot be made.
    """
    _link(folder / OVERLAY_LINK, layer)


def _link(link: Path, layer: Path) -> None:
    part = link.with_suffix(".part")
    part.unlink(missing_ok=True)
    part.symlink_to(layer)
    part.rename(link)


def read_top_layer(pid: int, folder: Path) -> Path:
    """Return which layer the VMM `pid`, whose folder that is, has open to write.

    Raises:
        VmmFailed: it is gone, or it is not clear which.
    """
    layers = os.path.dirname(os.path.realpath(folder / OVERLAY_LINK))
    volumes = {os.path.realpath(link) for link in folder.glob(volume_link("*"))}
    found = {path for path in _written_files(pid) if os.path.dirname(path) == layers} - volumes
    if len(found) != 1:
        raise VmmFailed(f"the VMM has {len(found)} disks open that may be the overlay")
    return Path(found.pop())


def _written_files(pid: int) -> list[str]:
    """Return the paths of the files that `pid` has open to write.

    Raises:
        VmmFailed: it is gone.
    """
    found: list[str] = []
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError), open(f"/proc/{pid}/fdinfo/{fd}") as info:
                flags = next(int(line.split()[1], 8) for line in info if line.startswith("flags:"))
                if flags & os.O_ACCMODE == os.O_RDWR:
                    found.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    except (FileNotFoundError, ProcessLookupError) as error:
        raise VmmFailed("the VMM is gone") from error
    return found
