"""The disk from which a guest learns what it is (docs/guest-protocol.md, The boot configuration).

It is read once, at the first boot; a fork learns who it is by an `identify` request instead.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from ramet.wire.frames import ProtocolError
from ramet.wire.messages import (
    Network,
    dump,
    load,
    parse_hex,
    parse_int,
    parse_network,
    parse_text,
    parse_text_map,
    parse_texts,
)

BOOT_CONFIG_MAGIC: Final = b"RAMETCF1"
BOOT_CONFIG_BYTES_MAX: Final = 1 << 20
"""What the JSON may take: argv and env of an image together rarely exceed 100 KiB."""
SECTOR_BYTES: Final = 512

_LENGTH: Final = struct.Struct(">I")
_HEAD_BYTES: Final = len(BOOT_CONFIG_MAGIC) + _LENGTH.size


@dataclass(frozen=True, slots=True)
class BootVolume:
    """A disk behind the guest's own, in their order: where it is mounted, and how.

    `overlay_part` is the part of the overlay's disk that takes what is written, None without an overlay.
    """

    path: str
    read_only: bool
    overlay_part: int | None = None

    def to_json(self) -> dict[str, object]:
        return {"path": self.path, "read_only": self.read_only, "overlay_part": self.overlay_part}

    @classmethod
    def from_json(cls, raw: object) -> "BootVolume":
        """Read what `to_json` made.

        Raises:
            ProtocolError: it did not.
        """
        if not isinstance(raw, dict):
            raise ProtocolError(f"a volume is {raw!r}")
        part, is_read_only = raw.get("overlay_part"), raw.get("read_only")
        if not isinstance(is_read_only, bool) or not (part is None or type(part) is int):
            raise ProtocolError(f"a volume is {raw!r}")
        return cls(parse_text(raw, "path"), is_read_only, part)


@dataclass(frozen=True, slots=True)
class BootConfig:
    """What a guest runs and who it is at first. `user` as in an OCI image config; `clock_ns` is Unix time.

    `overlay_parts` are the sizes in bytes of the file systems on the overlay's disk, the root's first, and
    none where that is the only one. With `skip_agent` the guest refuses commands and files of others.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    user: str
    hostname: str
    machine_id: str
    clock_ns: int
    entropy: bytes = field(repr=False)
    network: Network | None = None
    overlay: Literal["disk"] = "disk"
    overlay_parts: tuple[int, ...] = ()
    volumes: tuple[BootVolume, ...] = ()
    skip_agent: bool = False

    def to_disk(self) -> bytes:
        """Return the contents of the config disk, a whole number of sectors.

        Raises:
            ProtocolError: it would exceed BOOT_CONFIG_BYTES_MAX.
        """
        payload = dump(
            {
                "argv": list(self.argv),
                "env": dict(self.env),
                "cwd": self.cwd,
                "user": self.user,
                "hostname": self.hostname,
                "machine_id": self.machine_id,
                "clock_ns": self.clock_ns,
                "entropy": self.entropy.hex(),
                "network": self.network.to_json() if self.network else None,
                "overlay": self.overlay,
                "overlay_parts": list(self.overlay_parts),
                "volumes": [volume.to_json() for volume in self.volumes],
                "skip_agent": self.skip_agent,
            }
        )
        if len(payload) > BOOT_CONFIG_BYTES_MAX:
            raise ProtocolError(f"a boot configuration of {len(payload)} bytes")
        image = BOOT_CONFIG_MAGIC + _LENGTH.pack(len(payload)) + payload
        return image + bytes(-len(image) % SECTOR_BYTES)

    @classmethod
    def from_disk(cls, image: bytes) -> "BootConfig":
        """Return what a config disk says.

        Raises:
            ProtocolError: it is not a config disk, or says it wrongly.
        """
        if len(image) < _HEAD_BYTES or not image.startswith(BOOT_CONFIG_MAGIC):
            raise ProtocolError("not a config disk")
        (length,) = _LENGTH.unpack_from(image, len(BOOT_CONFIG_MAGIC))
        if length > len(image) - _HEAD_BYTES:
            raise ProtocolError(f"a config disk of {len(image)} bytes that claims {length}")
        message = load(image[_HEAD_BYTES : _HEAD_BYTES + length])
        if message.get("overlay") != "disk":
            raise ProtocolError(f"overlay is {message.get('overlay')!r}")
        skip_agent = message.get("skip_agent", False)
        if not isinstance(skip_agent, bool):
            raise ProtocolError(f"skip_agent is {skip_agent!r}")
        return cls(
            argv=parse_texts(message, "argv"),
            env=parse_text_map(message, "env"),
            cwd=parse_text(message, "cwd"),
            user=parse_text(message, "user"),
            hostname=parse_text(message, "hostname"),
            machine_id=parse_text(message, "machine_id"),
            clock_ns=parse_int(message, "clock_ns"),
            entropy=parse_hex(message, "entropy"),
            network=parse_network(message),
            overlay_parts=_parse_sizes(message.get("overlay_parts", [])),
            volumes=tuple(BootVolume.from_json(raw) for raw in _parse_list(message.get("volumes", []))),
            skip_agent=skip_agent,
        )


def _parse_list(raw: object) -> list[object]:
    if not isinstance(raw, list):
        raise ProtocolError(f"expected a list, not {raw!r}")
    return raw


def _parse_sizes(raw: object) -> tuple[int, ...]:
    sizes = tuple(size for size in _parse_list(raw) if type(size) is int and size > 0)
    if len(sizes) != len(_parse_list(raw)):
        raise ProtocolError(f"parts of a disk are {raw!r}")
    return sizes
