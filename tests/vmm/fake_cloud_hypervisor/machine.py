"""The machine behind the API: what is configured, whether it runs, and what a snapshot of it holds."""

import fcntl
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ramet.vmm.fake.guest import Guest, GuestEnded, new_memory
from tests.vmm.fake_cloud_hypervisor.api import NET, Refused, demand_members
from tests.vmm.fake_firecracker.api import Version
from tests.vmm.fake_firecracker.memory import Memory, WrongPage

CONFIG_NAME, STATE_NAME, MEMORY_NAME = "config.json", "state.json", "memory-ranges"
NOT_CREATED: Final = "VM is not created"
_F_OFD_SETLK: Final = 37  # asm-generic/fcntl.h
_TUNGETIFF: Final = 0x800454D2  # linux/if_tun.h
_OWN_PART: Final = "fake"
_ROOM_AT: Final = 4 << 30
ROOM_ALIGN_BYTES: Final = 128 << 20
PLUG_BLOCK_BYTES: Final = 2 << 20


class Machine:
    """One VM, or none yet. `tell`: is given what happens to it."""

    def __init__(self, full_version: str, tell: Callable[[str, str], None]) -> None:
        self.version: Version = tuple(int(part) for part in full_version.split(".")[:2])
        self._full_version, self._tell = full_version, tell
        self._config: dict[str, Any] | None = None
        self.state = "None"  # Of the guest: "None", "Running" or "Paused".
        self._disks: dict[str, int] = {}
        self._tap_fds: list[int] = []
        self._console: int | None = None
        self._memory: Memory | None = None
        self._plugged: Memory | None = None
        self._taken_bytes = 0  # By the balloon.
        self._is_verified = True
        self._guest: Guest | None = None

    @property
    def guest(self) -> Guest:
        assert self._guest is not None, "not booted"
        return self._guest

    @property
    def vsock_path(self) -> str | None:
        vsock = (self._config or {}).get("vsock")
        return None if vsock is None else vsock["socket"]

    def execute(self, action: str, body: dict[str, Any], fds: list[int]) -> Any:
        """Do what a checked request asks; returns the body of the answer, or None.

        Raises:
            Refused: it cannot be done.
            GuestEnded: the guest ended at its start.
        """
        match action:
            case "vmm.ping":
                return {
                    "build_version": f"v{self._full_version}",
                    "version": f"{self._full_version}.0",
                    "pid": os.getpid(),
                    "features": ["kvm"],
                }
            case "vm.info":
                return self._info()
            case "vm.create":
                self._create(body)
            case "vm.add-net":
                self._add_card(body, fds)
            case "vm.boot":
                self._boot()
            case "vm.pause":
                self._demand_state("Running", "Paused")
                assert self._memory is not None
                self._memory.remember(self.guest.memory)
                self.state = "Paused"
            case "vm.resume":
                self._resume()
            case "vm.resize":
                self._resize(body)
            case "vm.resize-zone":
                self._resize_zone(body)
            case "vm.snapshot":
                self._snapshot(_folder_of(body["destination_url"]))
            case "vm.restore":
                self._restore(body, fds)
            case "vm.shutdown" | "vm.delete":
                self._end(is_deleted=action == "vm.delete")
            case "vmm.shutdown":
                self._end(is_deleted=True)
                raise GuestEnded("guest-shutdown")

    def reboot(self) -> None:
        """Boot once more, as after a reset of the guest."""
        self._tell("vm", "rebooting")
        self._end(is_deleted=False)
        self._boot()

    def _info(self) -> dict[str, Any]:
        config = self._demand_config()
        state = "Created" if self.state == "None" else self.state
        actual = _size_of(config) - self._taken_bytes + _plugged_of(config)
        return {"config": config, "state": state, "memory_actual_size": actual}

    def _demand_config(self) -> dict[str, Any]:
        if self._config is None:
            raise Refused(NOT_CREATED, 404)
        return self._config

    def _demand_state(self, wanted: str, then: str) -> None:
        if self.state == "None":
            raise Refused("VM is not running")
        if self.state != wanted:
            raise Refused(f"Invalid VM state transition: from {self.state} to {then}")

    # Before the boot

    def _create(self, config: dict[str, Any]) -> None:
        if self._config is not None:
            raise Refused("VM is already created")
        self._config = config
        self._open_console(config)

    def _add_card(self, card: dict[str, Any], fds: list[int]) -> None:
        config = self._demand_config()
        if self.state != "None":
            raise Refused("the fake plugs nothing into a guest that runs")
        cards = config.setdefault("net", [])
        if any(each.get("id") == card.get("id") for each in cards):
            raise Refused(f"Identifier {card.get('id')} is not unique")
        if ("tap" in card) == bool(fds):
            raise Refused("either a TAP's name or its descriptors")
        self._tap_fds += fds
        cards.append(card | ({"fds": [-1] * len(fds)} if fds else {}))

    def _boot(self) -> None:
        config = self._demand_config()
        if self.state != "None":
            raise Refused("VM is already created")
        self._open_payload(config)
        self._open_devices(config)
        self._memory = Memory.boot(_size_of(config))
        self._guest = Guest(new_memory(), self._layers(), self._print)
        self.state = "Running"
        self._tell("vm", "booted")
        self._guest.boot(self._read_boot_config())

    def _open_payload(self, config: dict[str, Any]) -> None:
        payload = config.get("payload") or {}
        for name in ("kernel", "initramfs"):
            if name in payload:
                os.close(_open(payload[name], os.O_RDONLY))
        if "kernel" not in payload:
            raise Refused("Cannot boot without a kernel")

    def _open_console(self, config: dict[str, Any]) -> None:
        serial = config.get("serial", {"mode": "Null"})
        if self._console is None and serial["mode"] == "File":
            self._console = os.open(
                serial["file"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
            )

    def _open_devices(self, config: dict[str, Any]) -> None:
        for disk in config.get("disks", []):
            flags = os.O_RDONLY if disk.get("readonly") else os.O_RDWR
            fd = _open(disk["path"], flags)
            lock = fcntl.F_RDLCK if disk.get("readonly") else fcntl.F_WRLCK
            try:
                lock_file(fd, lock)
            except BlockingIOError as error:
                raise Refused(f"The disk {disk['path']} is locked") from error
            self._disks[disk["id"]] = fd
        for card in config.get("net", []):
            if "tap" in card and not Path("/sys/class/net", card["tap"]).exists():
                raise Refused(f"Cannot open TAP {card['tap']}")
        for fd in self._tap_fds:
            try:
                fcntl.ioctl(fd, _TUNGETIFF, bytes(40))
            except OSError as error:
                raise Refused("Cannot open TAP: a descriptor of something else") from error

    def _layers(self) -> list[Path]:
        return [Path(f"/proc/self/fd/{self._disks['overlay']}")] if "overlay" in self._disks else []

    def _read_boot_config(self) -> dict[str, Any]:
        raw = os.pread(self._disks["config"], 1 << 20, 0)
        length = int.from_bytes(raw[8:12], "big")
        config: dict[str, Any] = json.loads(raw[12 : 12 + length])
        return config

    def _print(self, line: str) -> None:
        if self._console is not None:
            os.write(self._console, f"{line}\n".encode())

    # While it runs

    def _resume(self) -> None:
        self._demand_state("Paused", "Running")
        assert self._memory is not None
        if not self._is_verified:
            try:
                self._memory.verify()
            except WrongPage as wrong:
                raise Refused(f"Guest memory is damaged: {wrong}", is_fatal=True) from wrong
            self._is_verified = True
            self.guest.memory = self._memory.content()
        self.state = "Running"

    def _resize(self, body: dict[str, Any]) -> None:
        config = self._demand_config()
        if self.state == "None":
            raise Refused("the fake resizes nothing that does not run")
        if "desired_ram" in body:
            raise Refused("Not allowed to resize guest memory when backed with user defined memory zones")
        if "desired_vcpus" in body:
            if not 1 <= body["desired_vcpus"] <= config["cpus"]["max_vcpus"]:
                raise Refused("Desired vCPU count exceeds maximum, or is zero")
            config["cpus"]["boot_vcpus"] = body["desired_vcpus"]
        if "desired_balloon" in body:
            (zone,), balloon = config["memory"]["zones"], config.get("balloon")
            if balloon is None:
                raise Refused("No balloon device")
            if "file" in zone and body["desired_balloon"] > self._taken_bytes:
                raise Refused("a balloon would give back what belongs to others", is_fatal=True)
            balloon["size"] = body["desired_balloon"]
            self._taken_bytes = min(balloon["size"], zone["size"] // 2)  # A guest keeps what it needs.

    def _resize_zone(self, body: dict[str, Any]) -> None:
        (zone,) = self._demand_config()["memory"]["zones"]
        plugged = body["desired_ram"] - zone["size"]
        if body["id"] != zone["id"] or self.state == "None":
            raise Refused("Could not find the memory zone")
        if not 0 <= plugged <= zone.get("hotplug_size", 0) or plugged % PLUG_BLOCK_BYTES:
            raise Refused(f"new size {plugged} is bigger than the region, or not aligned on its blocks")
        if plugged == zone.get("hotplugged_size", 0):
            raise Refused("new size and requested_size are identical")
        zone["hotplugged_size"] = plugged
        self._plugged = Memory.boot(plugged) if plugged else None

    def _end(self, *, is_deleted: bool) -> None:
        for fd in (*self._disks.values(), *(self._tap_fds if is_deleted else ())):
            os.close(fd)
        self._disks.clear()
        self._memory = self._plugged = self._guest = None
        self._taken_bytes = 0
        self.state = "None"
        if is_deleted:
            self._tap_fds.clear()
            self._config = None

    # Snapshots

    def _snapshot(self, folder: Path) -> None:
        if self.state != "Paused":
            raise Refused("Cannot snapshot VM: it is not paused")
        assert self._memory is not None
        config = self._demand_config()
        if any((folder / name).exists() for name in (CONFIG_NAME, STATE_NAME, MEMORY_NAME)):
            raise Refused("Error creating snapshot file: File exists (os error 17)")
        try:
            (folder / CONFIG_NAME).write_text(json.dumps(config))
            plugged_bytes = 0 if self._plugged is None else _plugged_of(config)
            if self._plugged is not None:
                self._plugged.store(str(folder / MEMORY_NAME), all_pages=True)
            self._memory.store(str(folder / MEMORY_NAME), all_pages=True, offset=plugged_bytes)
            own = {
                "version": self._full_version,
                "sums": self._memory.sums,
                "plugged_sums": [] if self._plugged is None else self._plugged.sums,
            }
            told = {
                "memory-manager": _part(_memory_state(config)),
                "device-manager": {
                    "snapshots": self._balloon_state(config),
                    "snapshot_data": {"state": "{}"},
                },
                _OWN_PART: _part(own),
            }
            (folder / STATE_NAME).write_text(json.dumps({"snapshots": told, "snapshot_data": None}))
        except OSError as error:
            raise Refused(f"Cannot send VM snapshot: {error}") from error

    def _balloon_state(self, config: dict[str, Any]) -> dict[str, Any]:
        if "balloon" not in config:
            return {}
        pages = {"num_pages": config["balloon"]["size"] // 4096, "actual": self._taken_bytes // 4096}
        return {"__balloon": _part({"config": pages})}

    def _restore(self, body: dict[str, Any], fds: list[int]) -> None:
        if self._config is not None:
            raise Refused("VM is already created")
        if body.get("memory_restore_mode") == "OnDemand" and body.get("prefault"):
            raise Refused("'prefault' cannot be combined with 'memory_restore_mode=ondemand'")
        if sum(each.get("num_fds", 0) for each in body.get("net_fds", [])) != len(fds):
            raise Refused("Bad Request", 400)
        folder = _folder_of(body["source_url"])
        try:
            config = json.loads((folder / CONFIG_NAME).read_text())
            state = json.loads((folder / STATE_NAME).read_text())["snapshots"]
            self._take(folder, config, state, body, fds)
        except (OSError, ValueError, KeyError, TypeError, WrongPage) as error:
            self._end(is_deleted=True)
            raise Refused(f"Cannot restore VM: {error!r}") from error
        except Refused:
            self._end(is_deleted=True)
            raise
        if body.get("resume"):
            self._resume()

    def _take(
        self,
        folder: Path,
        config: dict[str, Any],
        state: dict[str, Any],
        body: dict[str, Any],
        fds: list[int],
    ) -> None:
        memory, own = (
            json.loads(state[name]["snapshot_data"]["state"]) for name in ("memory-manager", _OWN_PART)
        )
        if own["version"] != self._full_version:
            raise ValueError(f"a state of version {own['version']}")
        given = {each["id"]: each.get("num_fds", 0) for each in body.get("net_fds", [])}
        for card in config.get("net", []):
            demand_members(self.version, NET, {name: card[name] for name in card if name != "fds"})
            if "fds" in card and given.get(card["id"]) != len(card["fds"]):
                raise ValueError(f"the network card {card['id']} needs descriptors")
        self._config, self._tap_fds = config, list(fds)
        self._open_console(config)
        self._open_payload(config)  # As a real one does, which makes nothing of it.
        self._take_memory(folder, config, memory, own)
        if "balloon" in config:
            part = state["device-manager"]["snapshots"]["__balloon"]
            balloon = json.loads(part["snapshot_data"]["state"])["config"]
            if balloon["num_pages"] > balloon["actual"]:
                raise ValueError("its balloon would give back what belongs to others")
            self._taken_bytes = balloon["actual"] * 4096
        self._open_devices(config)
        self._guest = Guest(new_memory(), self._layers(), self._print)
        self._is_verified = False
        self.state = "Paused"

    def _take_memory(
        self, folder: Path, config: dict[str, Any], memory: dict[str, Any], own: dict[str, Any]
    ) -> None:
        (zone,), told = config["memory"]["zones"], _memory_state(config)
        *plugged, booted = told["memory_ranges"]["data"]
        is_of_file, offset = "file" in zone, sum(each["length"] for each in plugged)
        if is_of_file:
            told["guest_ram_mappings"][0]["file_offset"] = offset
        if memory["guest_ram_mappings"] != told["guest_ram_mappings"]:
            raise ValueError("the memory is elsewhere")
        if memory["memory_ranges"]["data"] != plugged + ([] if is_of_file else [booted]):
            raise ValueError("what is to be copied is not just what no file is mapped for")
        if zone.get("shared", False):
            raise ValueError("it would write to a file of others")
        stored = str(folder / MEMORY_NAME)
        self._memory = Memory.of_file(zone["file"] if is_of_file else stored, own["sums"], offset)
        if plugged:
            self._plugged = Memory.of_file(stored, own["plugged_sums"], 0)
            self._plugged.verify()


def _part(content: dict[str, Any]) -> dict[str, Any]:
    return {"snapshots": {}, "snapshot_data": {"state": json.dumps(content)}}


def _memory_state(config: dict[str, Any]) -> dict[str, Any]:
    (zone,) = config["memory"]["zones"]
    plugged = [{"gpa": _ROOM_AT, "length": _plugged_of(config)}] if _plugged_of(config) else []
    booted = {"gpa": 0, "length": zone["size"]}
    mapping = {"zone_id": zone["id"], "file_offset": 0}
    mappings = [mapping | {"slot": 0, "gpa": 0, "size": zone["size"], "virtio_mem": False}]
    if zone.get("hotplug_size"):
        room = {"slot": 1, "gpa": _ROOM_AT, "size": zone["hotplug_size"], "virtio_mem": True}
        mappings.append(mapping | room)
    return {"memory_ranges": {"data": [*plugged, booted]}, "guest_ram_mappings": mappings}


def _plugged_of(config: dict[str, Any]) -> int:
    plugged: int = config["memory"]["zones"][0].get("hotplugged_size", 0)
    return plugged


def lock_file(fd: int, kind: int) -> None:
    """Lock an open file (F_RDLCK, F_WRLCK), for as long as it is open.

    Raises:
        BlockingIOError: another has.
    """
    fcntl.fcntl(fd, _F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0))


def _size_of(config: dict[str, Any]) -> int:
    memory = config["memory"]
    if memory["size"] != 0 or len(memory.get("zones", [])) != 1:
        raise Refused("the fake has its memory in one zone, and none beside it")
    if memory["zones"][0].get("hotplug_size") and memory.get("hotplug_method") != "VirtioMem":
        raise Refused("Invalid to set ACPI hotplug method for memory zones")
    if memory["zones"][0].get("hotplug_size", 0) % ROOM_ALIGN_BYTES:
        raise Refused(f"Virtio-mem size is not aligned with {ROOM_ALIGN_BYTES}")
    size: int = memory["zones"][0]["size"]
    return size


def _folder_of(url: str) -> Path:
    folder = Path(url.removeprefix("file://"))
    if not url.startswith("file://") or not folder.is_dir():
        raise Refused("Destination is not a directory")
    return folder


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(f"Cannot open {path}: {error.strerror}") from error
