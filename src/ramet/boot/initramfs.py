"""An initramfs is a cpio archive in the "newc" format, written here byte for byte the same every time.

Owner, time and inode numbers are constants, so that the same content has the same digest, and a snapshot
can name the initramfs it was booted with. It is not compressed: unpacking would be done by an emulated
processor on every boot, and the host keeps the file in its page cache once, whatever its size.

Format: Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import stat
from collections.abc import Iterable, Sequence
from typing import Final

CONSOLE_DEVICE: Final = (5, 1)  # /dev/console, Documentation/admin-guide/devices.txt
MODULES_FOLDER: Final = "modules"
ORDER_FILE: Final = "modules/order"  # File names in MODULES_FOLDER, one a line, in loading order.

_TRAILER: Final = "TRAILER!!!"
_FILE_BYTES_MAX: Final = 0xFFFFFFFF  # Eight hexadecimal digits.


class CpioWriter:
    """Collects the entries of a newc archive; names are relative to the root and folders come first."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._entry_count = 0

    def add_folder(self, name: str) -> None:
        """Add the directory `name`, mode 0755."""
        self._add(name, stat.S_IFDIR | 0o755, b"")

    def add_file(self, name: str, content: bytes, *, executable: bool = False) -> None:
        """Add the regular file `name`, mode 0755 or 0644."""
        self._add(name, stat.S_IFREG | (0o755 if executable else 0o644), content)

    def add_character_device(self, name: str, device: tuple[int, int]) -> None:
        """Add a character device, mode 0600; `device` is its major and minor number."""
        self._add(name, stat.S_IFCHR | 0o600, b"", device)

    def finish(self) -> bytes:
        """Return the whole archive, ended by its trailer; the writer must not be used again."""
        self._add(_TRAILER, 0, b"")
        return b"".join(self._parts)

    def _add(self, name: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        assert not name.startswith("/")
        assert len(content) <= _FILE_BYTES_MAX
        self._entry_count += 1
        encoded = name.encode() + b"\0"
        numbers = (
            0 if name == _TRAILER else self._entry_count,  # inode
            mode,
            0,  # uid
            0,  # gid
            2 if stat.S_ISDIR(mode) else 1,  # links
            0,  # mtime
            len(content),
            0,  # device of the file system, major
            0,  # and minor
            *device,
            len(encoded),
            0,  # checksum; none in newc
        )
        header = b"070701" + b"".join(b"%08X" % number for number in numbers)
        # The name begins behind the header's 110 bytes and ends at a multiple of four; so does the content.
        self._parts += [
            header,
            encoded,
            _padding(len(header) + len(encoded)),
            content,
            _padding(len(content)),
        ]


def build_initramfs(guest_program: bytes, modules: Sequence[tuple[str, bytes]]) -> bytes:
    """Return the archive that boots `guest_program` as /init with `modules` beside it.

    Args:
        guest_program: a static ELF executable.
        modules: file name and ELF object of each, in the order in which they are to be loaded.
    """
    names = [name for name, _ in modules]
    assert len(set(names)) == len(names)
    archive = CpioWriter()
    archive.add_folder("dev")
    archive.add_character_device(
        "dev/console", CONSOLE_DEVICE
    )  # PID 1's stdio, opened before devtmpfs is there.
    archive.add_folder(MODULES_FOLDER)
    archive.add_file(ORDER_FILE, _lines(names))
    for name, content in modules:
        archive.add_file(f"{MODULES_FOLDER}/{name}", content)
    archive.add_file("init", guest_program, executable=True)
    return archive.finish()


def _lines(names: Iterable[str]) -> bytes:
    return "".join(f"{name}\n" for name in names).encode()


def _padding(length: int) -> bytes:
    return b"\0" * (-length % 4)
