"""A snapshot's files, and what of them is written anew for a child.

`config.json` says what to build, `state.json` what the devices and processors were doing: a tree of parts,
each with its state as JSON in a string. `memory-ranges` has the pieces of the memory one behind the other.

A child's memory is to be a private mapping of a capture's file. So its configuration names that file for the
memory, and its state says that there is nothing to copy out of `memory-ranges`.
"""

import json
import os
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from ramet.linux.filled_once import FilledOnce
from ramet.linux.sparse import data_runs
from ramet.vmm.cloud_hypervisor.build import LIMITER, NIC, ZONE, card_of
from ramet.vmm.port import Machine, VmmFailed

CONFIG: Final = "config.json"
STATE: Final = "state.json"
MEMORY: Final = "memory-ranges"
_MEMORY_PART: Final = "memory-manager"
_PIECE_BYTES: Final = 1 << 16
_BLOCK_BYTES: Final = 4096
_ZEROS: Final = bytes(_PIECE_BYTES)


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
        return cls(*(json.loads((folder / name).read_bytes()) for name in (CONFIG, STATE)))

    @classmethod
    def read(cls, devices: FilledOnce) -> "Snapshot":
        """Read what `write` has written.

        Raises:
            VmmFailed: it is nothing of the kind.
        """
        try:
            content = json.loads(os.pread(devices.fd, devices.size_bytes, 0))
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

    def write_folder(self, folder: Path) -> None:
        """Store the two files in `folder`.

        Raises:
            OSError: there is no room.
        """
        for name, content in ((CONFIG, self.config), (STATE, self.state)):
            (folder / name).write_text(json.dumps(content))

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
    def has_card_by_descriptor(self) -> bool:
        """Whether a load must be given a TAP along with it."""
        return any(card.get("fds") for card in self.config.get("net") or ())

    def _config_for(self, machine: Machine, memory_path: str) -> dict[str, Any]:
        config = dict(self.config)
        zone = {"id": ZONE, "size": machine.memory_bytes, "file": memory_path, "shared": False}
        config["memory"] = config["memory"] | {"zones": [zone]}
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
        part = self.state["snapshots"][_MEMORY_PART]
        memory = json.loads(part["snapshot_data"]["state"])
        ranges = memory["memory_ranges"]["data"]
        lengths = [piece["length"] for piece in ranges]
        if sum(lengths) != machine.memory_bytes:
            raise ValueError(f"{sum(lengths)} bytes of memory")
        offsets = dict(zip((piece["gpa"] for piece in ranges), accumulate(lengths, initial=0), strict=False))
        mappings = [piece | {"file_offset": offsets[piece["gpa"]]} for piece in memory["guest_ram_mappings"]]
        memory |= {"memory_ranges": {"data": []}, "guest_ram_mappings": mappings}
        told = part | {"snapshot_data": {"state": json.dumps(memory)}}
        return self.state | {"snapshots": self.state["snapshots"] | {_MEMORY_PART: told}}


def copy_memory(folder: Path, memory: FilledOnce) -> None:
    """Copy the memory that a VMM has stored in `folder`; zeros are left out.

    Raises:
        OSError: there is no room.
        ValueError: it is of another size.
    """
    fd = os.open(folder / MEMORY, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size != memory.size_bytes:
            raise ValueError(f"{os.fstat(fd).st_size} bytes of memory")
        for run in data_runs(fd, _BLOCK_BYTES):
            for skip in range(0, run.length_bytes, _PIECE_BYTES):
                piece = run.read(skip, min(_PIECE_BYTES, run.length_bytes - skip))
                if piece != _ZEROS[: len(piece)]:
                    os.pwrite(memory.fd, piece, run.offset + skip)
    finally:
        os.close(fd)
