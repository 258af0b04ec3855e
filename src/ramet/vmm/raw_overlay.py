"""The writable disk of a VMM that reads raw files only: each layer is a whole disk, a copy of the one below.

In the VM's folder a link leads to the layer that is written to, always by the same name: the one that every
snapshot has for its disk. What a VMM really writes to is what it has open.
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


def fill_overlay(machine: Machine) -> None:
    """Have the overlay of `machine` be a copy of what it stands on, and its folder's link lead to it.

    Raises:
        OSError: there is no room.
    """
    top, below = layers_of(machine.overlay)
    if below is not None and top.stat().st_size == 0:
        clone_file(below, top)
    link_overlay(machine.folder, top)


def link_overlay(folder: Path, layer: Path) -> None:
    """Have the link in `folder` lead to `layer`.

    Raises:
        OSError: it cannot be made.
    """
    link = folder / OVERLAY_LINK
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
    found = {path for path in _written_files(pid) if os.path.dirname(path) == layers}
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
