"""Trees of files, and all that is to be known of one."""

import os
import stat
from pathlib import Path

FILE_COUNT = 5_000
MTIME_NS = 1_700_000_000_123_456_789


def write_large_tree(folder: Path) -> None:
    """Make `FILE_COUNT` files below `folder`, links and FIFOs among them, with modes, owners and times."""
    for index in range(FILE_COUNT):
        home = folder / f"d{index % 50}" / f"e{index % 7}"
        home.mkdir(parents=True, exist_ok=True)
        path = home / f"file {index} {'é' * (index % 60)}"
        match index % 10:
            case 7:
                path.symlink_to(f"../../d0/{index}")
                os.lchown(path, index % 900, index % 800)
                continue
            case 8:
                os.link(folder / "d0" / "e0" / "file 0 ", path)
                continue
            case 9:
                os.mkfifo(path)
            case _:
                path.write_bytes(os.urandom(index % 3000))
        os.chown(path, index % 900, index % 800)
        os.chmod(path, (index * 7) % 0o7777)
        os.utime(path, ns=(MTIME_NS, MTIME_NS + index * 1_000_000_007))
    for home in folder.glob("d*"):
        os.chmod(home, 0o2751)
        os.utime(home, ns=(MTIME_NS, MTIME_NS))


def manifest(root: Path) -> dict[str, tuple[object, ...]]:
    """Return all that is below `root`: mode, owner, time, content or target, and other names of the same."""
    found: dict[str, tuple[object, ...]] = {}
    groups: dict[int, list[str]] = {}
    for path in sorted(root.rglob("*")):
        name, facts = str(path.relative_to(root)), path.lstat()
        groups.setdefault(facts.st_ino, []).append(name)
        content: object = None
        if stat.S_ISREG(facts.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(facts.st_mode):
            content = os.readlink(path)
        owner = (facts.st_uid, facts.st_gid)
        found[name] = (oct(facts.st_mode), owner, facts.st_mtime_ns, content, groups[facts.st_ino])
    return found
