"""The machine behind the API: what is configured, whether it runs, and what a snapshot of it holds."""

import errno
import fcntl
import json
import os
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ramet.linux.tun import IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TUNSETIFF
from ramet.vmm.fake.guest import Guest, new_memory
from tests.vmm.fake_firecracker.api import Refused, Version
from tests.vmm.fake_firecracker.memory import Memory, WrongPage

State = str  # "Not started", "Running" or "Paused"
_SUM_BYTES: Final = 8
_LOOPBACK: Final = "lo"
_TAP_FLAGS: Final = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR
_VCPUS_MAX: Final = 32


class Machine:
    """One microVM. `console` is given each line the guest prints."""

    def __init__(self, version: str, name: str, console: Callable[[str], None]) -> None:
        self.version: Version = tuple(int(part) for part in version.split(".")[:2])
        self.state: State = "Not started"
        self._full_version, self._name, self._console = version, name, console
        self._configured: dict[str, Any] = {"drives": {}, "network-interfaces": {}}
        self._machine: dict[str, Any] = {"vcpu_count": 1, "mem_size_mib": 128}
        self._disks: dict[str, int] = {}
        self._memory: Memory | None = None
        self._is_verified = True
        self._guest: Guest | None = None

    @property
    def guest(self) -> Guest:
        assert self._guest is not None, "not started"
        return self._guest

    @property
    def vsock_path(self) -> str | None:
        vsock = self._configured.get("vsock")
        return None if vsock is None else vsock["uds_path"]

    def execute(self, key: tuple[str, str], body: dict[str, Any]) -> Any:
        """Do what a checked request asks; returns the body of the answer, or None.

        Raises:
            Refused: it cannot be done.
            GuestEnded: the guest ended at its start.
        """
        method, path = key
        match method, path.strip("/"):
            case "GET", name:
                return self._tell(name)
            case "PUT", "actions":
                self._act(body["action_type"])
            case "PATCH", "vm":
                self._pause() if body["state"] == "Paused" else self._resume()
            case "PUT", "snapshot/create":
                self._create_snapshot(body)
            case "PUT", "snapshot/load":
                self._load_snapshot(body)
            case "PATCH", "drives":
                self._replace_disk(body)
            case "PATCH", ("balloon" | "network-interfaces"):
                self._update(path.strip("/"), body)
            case "PUT", name:
                self._configure(name, body)

    def _tell(self, name: str) -> Any:
        match name:
            case "":
                return {
                    "id": self._name,
                    "state": self.state,
                    "vmm_version": self._full_version,
                    "app_name": "Firecracker",
                }
            case "version":
                return {"firecracker_version": self._full_version}
            case "machine-config":
                return self._machine
            case "balloon":
                if "balloon" not in self._configured:
                    raise Refused("Balloon config error: Device not found")
                return self._configured["balloon"]
            case _:
                lists = {
                    name: list(self._configured[name].values()) for name in ("drives", "network-interfaces")
                }
                return {**self._configured, **lists, "machine-config": self._machine}

    # Before the start

    def _configure(self, name: str, body: dict[str, Any]) -> None:
        match name:
            case "machine-config":
                if not 1 <= body["vcpu_count"] <= _VCPUS_MAX or body["mem_size_mib"] == 0:
                    raise Refused("The vCPU number or the memory size is invalid")
                self._machine = body
            case "boot-source":
                for field in ("kernel_image_path", "initrd_path"):
                    if field in body:
                        os.close(_open(body[field], os.O_RDONLY, "Boot source error"))
            case "drives":
                if "socket" not in body:
                    os.close(_open(body.get("path_on_host", ""), _flags(body), "Drive config error"))
            case "network-interfaces":
                try:
                    self._open_tap(body["host_dev_name"])
                except OSError as error:
                    raise Refused(f"Network config error: Open tap device failed: {error}") from error
            case "logger" | "metrics":
                file = body.get("log_path", body.get("metrics_path"))
                if file is not None and self.version < (1, 14) and not os.path.exists(file):
                    raise Refused(f"Failed to initialize {name}: no such file")
        if name in ("drives", "network-interfaces"):
            self._configured[name][body["drive_id" if name == "drives" else "iface_id"]] = body
        else:
            self._configured[name] = body

    def _open_tap(self, name: str) -> None:
        """Hold the TAP `name` as long as this process lives. An interface that is none is only looked for.

        Raises:
            OSError: there is none, or somebody holds it.
        """
        try:
            socket.if_nametoindex(name)
        except OSError as error:
            raise OSError(errno.ENODEV, f"no TAP {name}") from error
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC) if name != _LOOPBACK else -1
        if fd >= 0:
            fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP_FLAGS))

    def _act(self, action: str) -> None:
        if action != "InstanceStart":
            if self.state == "Not started":
                raise Refused("The requested operation is not supported before starting the microVM.")
            return
        if self.state != "Not started":
            raise Refused("The requested operation is not supported after starting the microVM.")
        if "boot-source" not in self._configured:
            raise Refused("Start microvm error: Cannot start microvm without kernel configuration.")
        self._open_disks()
        self._memory = Memory.boot(self._machine["mem_size_mib"] << 20)
        self._guest = Guest(new_memory(), self._layers(), self._console)
        self.state = "Running"
        self._guest.boot(self._read_config())

    def _open_disks(self) -> None:
        for name, drive in self._configured["drives"].items():
            self._disks[name] = _open(drive["path_on_host"], _flags(drive), "Drive error")

    def _layers(self) -> list[Path]:
        return [Path(f"/proc/self/fd/{self._disks['overlay']}")] if "overlay" in self._disks else []

    def _read_config(self) -> dict[str, Any]:
        raw = os.pread(self._disks["config"], 1 << 20, 0)
        length = int.from_bytes(raw[8:12], "big")
        config: dict[str, Any] = json.loads(raw[12 : 12 + length])
        return config

    # While it runs

    def _pause(self) -> None:
        if self.state == "Running":
            self._store_memory()
        self.state = "Paused"

    def _resume(self) -> None:
        assert self._memory is not None
        if not self._is_verified:
            try:
                self._memory.verify()
            except WrongPage as wrong:
                raise Refused(f"Guest memory is damaged: {wrong}", is_fatal=True) from wrong
            self._is_verified = True
            assert self._guest is not None
            self._guest.memory = self._memory.content()
        self.state = "Running"

    def _store_memory(self) -> None:
        assert self._memory is not None
        self._memory.remember(self.guest.memory)

    def _replace_disk(self, body: dict[str, Any]) -> None:
        drive = self._configured["drives"].get(body["drive_id"])
        if drive is None:
            raise Refused("Unable to patch the block device: Device manager error: not found")
        if "rate_limiter" in body:
            drive["rate_limiter"] = body["rate_limiter"]
        if "path_on_host" in body:
            fd = _open(body["path_on_host"], _flags(drive), "Unable to patch the block device")
            os.close(self._disks[body["drive_id"]])
            self._disks[body["drive_id"]] = fd
            drive["path_on_host"] = body["path_on_host"]
            self.guest.layers = self._layers()

    def _update(self, name: str, body: dict[str, Any]) -> None:
        if name == "balloon":
            if "balloon" not in self._configured:
                raise Refused("Balloon config error: Device not found")
            self._configured["balloon"]["amount_mib"] = body["amount_mib"]
        elif body["iface_id"] not in self._configured[name]:
            raise Refused("Failed to update the network interface: not found")
        else:
            self._configured[name][body["iface_id"]].update(body)

    # Snapshots

    def _create_snapshot(self, body: dict[str, Any]) -> None:
        if self.state != "Paused":
            raise Refused("Create snapshot error: the microVM must be paused.")
        is_diff = body.get("snapshot_type") == "Diff"
        if is_diff and not self._machine.get("track_dirty_pages") and self.version < (1, 13):
            raise Refused("Create snapshot error: Diff snapshots need track_dirty_pages.")
        assert self._memory is not None
        self._memory.tell_of_snapshot()
        try:
            self._memory.store(body["mem_file_path"], all_pages=not is_diff)
            content = {
                "version": self._full_version,
                "configured": self._configured,
                "machine": self._machine,
                "sums": self._memory.sums,
            }
            text = json.dumps(content).encode()
            Path(body["snapshot_path"]).write_bytes(text + zlib.crc32(text).to_bytes(_SUM_BYTES, "little"))
        except OSError as error:
            raise Refused(f"Create snapshot error: {error}") from error

    def _load_snapshot(self, body: dict[str, Any]) -> None:
        if self._configured.keys() - {"drives", "network-interfaces", "logger", "metrics"} or any(
            self._configured[name] for name in ("drives", "network-interfaces")
        ):
            raise Refused(
                "Load snapshot error: Loading a microVM snapshot not allowed after configuring "
                "boot-specific resources."
            )
        try:
            self._restore(body)
        except (OSError, ValueError, KeyError) as error:
            raise Refused(
                f"Load snapshot error: Failed to restore from snapshot: {error}", is_fatal=True
            ) from error
        if body.get("resume_vm"):
            self._resume()

    def _restore(self, body: dict[str, Any]) -> None:
        raw = Path(body["snapshot_path"]).read_bytes()
        text, total = raw[:-_SUM_BYTES], raw[-_SUM_BYTES:]
        if zlib.crc32(text).to_bytes(_SUM_BYTES, "little") != total:
            raise ValueError("CRC64 validation failed")
        content = json.loads(text)
        if content["version"].split(".")[:2] != self._full_version.split(".")[:2]:
            raise ValueError(f"unsupported data format version {content['version']}")
        self._configured, self._machine = content["configured"], content["machine"]
        for override in body.get("network_overrides", []):
            if override["iface_id"] not in self._configured["network-interfaces"]:
                raise ValueError("unknown network device")
            self._configured["network-interfaces"][override["iface_id"]].update(override)
        if "vsock_override" in body:
            self._configured["vsock"]["uds_path"] = body["vsock_override"]["uds_path"]
        tracks = body.get("track_dirty_pages", False) or body.get("enable_diff_snapshots", False)
        self._machine["track_dirty_pages"] = tracks
        for nic in self._configured["network-interfaces"].values():
            self._open_tap(nic["host_dev_name"])
        backend = body.get("mem_backend") or {"backend_type": "File", "backend_path": body["mem_file_path"]}
        attach = Memory.of_file if backend["backend_type"] == "File" else Memory.of_pager
        self._memory = attach(backend["backend_path"], content["sums"])
        self._open_disks()
        self._guest = Guest(new_memory(), self._layers(), self._console)
        self._is_verified = False
        self.state = "Paused"


def _flags(drive: dict[str, Any]) -> int:
    return os.O_RDONLY if drive.get("is_read_only") else os.O_RDWR


def _open(path: str, flags: int, what: str) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as error:
        raise Refused(f"{what}: cannot open {path}: {error.strerror}") from error
