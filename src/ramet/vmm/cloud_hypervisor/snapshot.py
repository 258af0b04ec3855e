"""A snapshot's files, and what of them is written anew for a child.

`config.json` says what to build, `state.json` what the devices and processors were doing: a tree of parts,
each with its state as JSON in a string. `memory-ranges` has the pieces of the memory one behind the other.

A child's memory is to be a private mapping of a capture's file, which has just what `memory-ranges` has. So
its configuration names that file for the memory, and its state says that there is nothing to copy out of
`memory-ranges` but what was plugged in after the boot: the VMM maps no file there.
"""

import json
import os
import stat
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from ramet.linux.filled_once import FilledOnce
from ramet.linux.sparse import data_runs
from ramet.vmm.cloud_hypervisor.build import LIMITER, NIC, ZONE, card_of, disks_of, payload_of
from ramet.vmm.port import Machine, VmmFailed

CONFIG: Final = "config.json"
STATE: Final = "state.json"
MEMORY: Final = "memory-ranges"
_MEMORY_PART: Final = "memory-manager"
_DEVICES_PART: Final = "device-manager"
_BALLOON_PART: Final = "__balloon"
_BALLOON_PAGE_BYTES: Final = 4096
_PIECE_BYTES: Final = 1 << 16
_BLOCK_BYTES: Final = 4096
_ZEROS: Final = bytes(_PIECE_BYTES)
_STORED_BYTES_MAX: Final = 1 << 26
"""Of each of the two small files: a hundred kilobytes for each of several hundred processors."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The two small files of a snapshot."""

    config: dict[str, Any]
    state: dict[str, Any]

    @classmethod
    def read_folder(cls, folder: Path) -> "Snapshot":
        """Read what a VMM has stored in `folder`.

        Raises:
            OSError, ValueError: it has not, or not wholly.
        """
        return cls(*(_parse(_read_stored(folder / name)) for name in (CONFIG, STATE)))

    @classmethod
    def read(cls, devices: FilledOnce) -> "Snapshot":
        """Read what `write` has written.

        Raises:
            VmmFailed: it is nothing of the kind.
        """
        try:
            content = _parse(os.pread(devices.fd, devices.size_bytes, 0))
            return cls(content["config"], content["state"])
        except (ValueError, KeyError, TypeError) as error:
            raise VmmFailed(f"the capture's devices make no sense: {error}") from error

    def write(self, devices: FilledOnce) -> None:
        """Have `devices` be this snapshot.

        Raises:
            OSError: there is no room.
        """
        content = json.dumps({"config": self.config, "state": self.state}).encode()
        written = 0
        while written < len(content):
            written += os.pwrite(devices.fd, content[written:], written)

    def write_folder(self, folder: Path, memory_path: str) -> list[Path]:
        """Store the two files in `folder`, and return them; and a link to where its memory is.

        Raises:
            OSError: there is no room.
        """
        contents = {folder / CONFIG: self.config, folder / STATE: self.state}
        for path, content in contents.items():
            path.write_text(json.dumps(content))
        (folder / MEMORY).symlink_to(memory_path)
        return list(contents)

    def for_child(self, machine: Machine, memory_path: str) -> "Snapshot":
        """Return it as `machine` is to load it, whose memory is a private mapping of `memory_path`.

        Raises:
            VmmFailed: it is of another machine, or of a form that is not known.
        """
        try:
            return Snapshot(self._config_for(machine, memory_path), self._state_for(machine))
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise VmmFailed(f"the capture's devices make no sense: {error!r}") from error

    @property
    def plugged_bytes(self) -> int:
        """How much memory it has beside what it was booted with.

        Raises:
            ValueError: it is of a form that is not known.
        """
        return self._ranges.plugged_bytes

    @property
    def memory_bytes(self) -> int:
        """How much memory it has in all. Raises as `plugged_bytes` does."""
        return self._ranges.plugged_bytes + self._ranges.booted_bytes

    @property
    def _ranges(self) -> "_Ranges":
        try:
            return _Ranges.of(self._memory_part)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(repr(error)) from error

    @property
    def _memory_part(self) -> dict[str, Any]:
        return _content_of(self.state["snapshots"][_MEMORY_PART])

    @property
    def has_card_by_descriptor(self) -> bool:
        """Whether a load must be given a TAP along with it."""
        return any(card.get("fds") for card in self.config.get("net") or ())

    def _config_for(self, machine: Machine, memory_path: str) -> dict[str, Any]:
        config = dict(self.config)
        (zone,) = config["memory"]["zones"]
        if zone["id"] != ZONE or (zone.get("hotplug_size") or 0) != machine.plug_bytes:
            raise ValueError("its room for memory")
        zone = zone | {"size": machine.memory_bytes, "file": memory_path, "shared": False}
        config["memory"] = config["memory"] | {"zones": [zone]}
        config["payload"] = config["payload"] | payload_of(machine)  # Opened, though not read.
        # A child gives no memory back: not even what its source was asked for and had not given yet.
        config["balloon"] = config["balloon"] | {"size": self._taken_pages * _BALLOON_PAGE_BYTES}
        found, wanted = config["disks"], disks_of(machine)
        if [(disk["id"], disk["readonly"]) for disk in found] != [
            (disk["id"], disk["readonly"]) for disk in wanted
        ]:
            raise ValueError("its disks")
        # Its limit is its own: that of its source may have been stored elsewhere.
        config["disks"] = [
            {name: value for name, value in disk.items() if name != LIMITER}
            | {name: value for name, value in own.items() if name == LIMITER}
            for disk, own in zip(found, wanted, strict=True)
        ]
        cards = config.get("net") or []
        if [card["id"] for card in cards] != ([] if machine.nic is None else [NIC]):
            raise ValueError("its network card")
        if machine.nic is not None:
            # Without limits of its own it has its source's.
            dropped = {"tap", "fds"} | (set() if machine.nic.limits is None else {LIMITER})
            kept = {name: value for name, value in cards[0].items() if name not in dropped}
            fds = {"fds": [-1]} if machine.nic.tap_fd >= 0 else {}
            config["net"] = [kept | card_of(machine.nic) | fds]
        return config

    def _state_for(self, machine: Machine) -> dict[str, Any]:
        memory = self._memory_part
        ranges = _Ranges.of(memory)
        if ranges.booted_bytes != machine.memory_bytes:
            raise ValueError(f"{ranges.booted_bytes} bytes of memory")
        memory |= {"memory_ranges": {"data": ranges.plugged}, "guest_ram_mappings": ranges.mappings()}
        parts = self.state["snapshots"]
        parts = parts | {_MEMORY_PART: _with_content(parts[_MEMORY_PART], memory)}
        devices = parts[_DEVICES_PART]
        part = devices["snapshots"][_BALLOON_PART]
        balloon = _content_of(part)
        balloon["config"] |= {"num_pages": self._taken_pages}
        told = devices["snapshots"] | {_BALLOON_PART: _with_content(part, balloon)}
        return self.state | {"snapshots": parts | {_DEVICES_PART: devices | {"snapshots": told}}}

    @property
    def _taken_pages(self) -> int:
        balloon = _content_of(self.state["snapshots"][_DEVICES_PART]["snapshots"][_BALLOON_PART])
        return int(balloon["config"]["actual"])


@dataclass(frozen=True, slots=True)
class _Ranges:
    """The pieces of `memory-ranges`: first what was plugged in, of which the rest of it has none."""

    plugged: list[dict[str, int]]
    booted: list[dict[str, int]]
    found: list[dict[str, Any]]

    @classmethod
    def of(cls, memory: dict[str, Any]) -> "_Ranges":
        ranges, found = memory["memory_ranges"]["data"], memory["guest_ram_mappings"]
        rooms = [range(each["gpa"], each["gpa"] + each["size"]) for each in found if each["virtio_mem"]]
        plugged = [piece for piece in ranges if any(piece["gpa"] in room for room in rooms)]
        if ranges[: len(plugged)] != plugged:
            raise ValueError("the order of its memory")
        return cls(plugged, ranges[len(plugged) :], found)

    @property
    def plugged_bytes(self) -> int:
        return sum(piece["length"] for piece in self.plugged)

    @property
    def booted_bytes(self) -> int:
        return sum(piece["length"] for piece in self.booted)

    def mappings(self) -> list[dict[str, Any]]:
        """Return where each piece that the guest was booted with is in the file."""
        lengths = [piece["length"] for piece in self.booted]
        offsets = accumulate(lengths, initial=self.plugged_bytes)
        known = dict(zip((piece["gpa"] for piece in self.booted), offsets, strict=False))
        return [
            each if each["virtio_mem"] else each | {"file_offset": known[each["gpa"]]} for each in self.found
        ]


def _content_of(part: dict[str, Any]) -> dict[str, Any]:
    return dict(_parse(part["snapshot_data"]["state"]))


def _with_content(part: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    return part | {"snapshot_data": {"state": json.dumps(content)}}


def copy_memory(folder: Path, stored_bytes: int, memory: FilledOnce) -> None:
    """Copy the `stored_bytes` of memory that a VMM has stored in `folder`; zeros are left out.

    Raises:
        OSError: there is no room.
        ValueError: it is of another size, or there is no place for it.
    """
    fd = _open_stored(folder / MEMORY)
    try:
        if os.fstat(fd).st_size != stored_bytes or stored_bytes > memory.size_bytes:
            raise ValueError(f"{os.fstat(fd).st_size} bytes of memory")
        for run in data_runs(fd, _BLOCK_BYTES):
            for skip in range(0, run.length_bytes, _PIECE_BYTES):
                piece = run.read(skip, min(_PIECE_BYTES, run.length_bytes - skip))
                if piece != _ZEROS[: len(piece)]:
                    os.pwrite(memory.fd, piece, run.offset + skip)
    finally:
        os.close(fd)


def _open_stored(path: Path) -> int:
    """Open what a VMM has stored, whose guest may have taken it over: a link or a pipe leads us nowhere.

    Raises:
        OSError, ValueError: it is not there, or no file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ValueError(f"{path.name} is no file")
    return fd


def _read_stored(path: Path) -> bytes:
    with open(_open_stored(path), "rb") as file:
        content = file.read(_STORED_BYTES_MAX + 1)
    if len(content) > _STORED_BYTES_MAX:
        raise ValueError(f"{path.name} has more than {_STORED_BYTES_MAX} bytes")
    return content


def _parse(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is none, or too deep.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it has too many levels") from error
