"""Reads newc archives, independently of the writer: Documentation/.../buffer-format.rst, field by field."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One entry of a newc archive, as the kernel would see it."""

    mode: int
    content: bytes
    device: tuple[int, int]
    inode: int


def read_archive(archive: bytes) -> dict[str, Entry]:
    """Return the entries before the trailer, in their order; raises ValueError on anything malformed."""
    entries: dict[str, Entry] = {}
    position = 0
    while True:
        header = archive[position : position + 110]
        if header[:6] != b"070701" or len(header) != 110:
            raise ValueError(f"no header at {position}")
        fields = [int(header[6 + 8 * i : 14 + 8 * i], 16) for i in range(13)]
        name_end = position + 110 + fields[11]
        raw_name = archive[position + 110 : name_end]
        if raw_name[-1:] != b"\0":
            raise ValueError(f"name not ended at {position}")
        content_start = (name_end + 3) & ~3
        content_end = content_start + fields[6]
        if content_end > len(archive):
            raise ValueError(f"cut off at {position}")
        name = raw_name[:-1].decode()
        if name == "TRAILER!!!":
            return entries
        if name in entries:
            raise ValueError(f"{name} twice")
        entries[name] = Entry(
            fields[1], archive[content_start:content_end], (fields[9], fields[10]), fields[0]
        )
        position = (content_end + 3) & ~3
