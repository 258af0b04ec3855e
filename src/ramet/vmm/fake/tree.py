"""Files of the smallest guest: a tree kept on the fake's disk, as tar archives in and out.

So what is copied into a guest is there in its forks and after a start, as on a real disk. Each path is one
write of a JSON object; a hard link is a second file with the same content.
"""

import base64
import io
import json
import posixpath
import tarfile
from pathlib import Path
from typing import Any, Final

from ramet.vmm.fake.disk import read_files, write_file

LINKS_MAX: Final = 40  # MAXSYMLINKS of the kernel.
_KEY: Final = "tree:"
_FOLDERS: Final = ("/", "/etc", "/root", "/tmp", "/var")

Node = dict[str, Any]


class TreeError(Exception):
    """The guest would not do it, for the protocol's reason `code`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message


def load(layers: list[Path]) -> dict[str, Node]:
    """Return all files by absolute path."""
    tree: dict[str, Node] = {folder: _node(tarfile.DIRTYPE, 0o755) for folder in _FOLDERS}
    for name, content in read_files(layers).items():
        if name.startswith(_KEY):
            tree[name.removeprefix(_KEY)] = json.loads(content)
    return tree


def stat(layers: list[Path], path: str, *, follow_links: bool) -> dict[str, Any]:
    """Return the members of the answer to `stat`."""
    tree = load(layers)
    error = None
    try:
        node = tree.get(_resolve(tree, path, follow_last=follow_links))
    except TreeError as trouble:
        node, error = None, trouble.message
    if node is None:
        node = _node(b"", 0)
    kind = node["kind"].encode()
    return {
        "exists": bool(kind),
        "is_dir": kind == tarfile.DIRTYPE,
        "is_file": kind == tarfile.REGTYPE,
        "is_symlink": kind == tarfile.SYMTYPE,
        "link_target": node["target"] if kind == tarfile.SYMTYPE else None,
        "size_bytes": len(base64.b64decode(node["data"])),
        "error": error,
        **{name: node[name] for name in ("mode", "uid", "gid", "mtime_ns")},
    }


def read_archive(layers: list[Path], path: str, *, follow_links: bool) -> bytes:
    """Return `path` and all below it as an archive.

    Raises:
        TreeError: there is no such path.
    """
    tree = load(layers)
    root = _resolve(tree, path, follow_last=follow_links)
    if root not in tree:
        raise TreeError("path_not_found", f"{path}: No such file or directory")
    last = path.rstrip("/").rpartition("/")[2] or "."
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for found in sorted(tree):
            if found == root or found.startswith(root.rstrip("/") + "/"):
                below = found[len(root) :].strip("/")
                _add(tar, f"{last}/{below}" if below else last, tree[found])
    return written.getvalue()


def write_archive(layers: list[Path], path: str, archive: bytes, *, keep_owner: bool) -> None:
    """Unpack `archive` into the directory `path`.

    Raises:
        TreeError: it is not a directory, or not an archive that may be unpacked there.
    """
    tree = load(layers)
    destination = check_folder(layers, path)
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:") as tar:
            for info in tar:
                parts = [part for part in info.name.split("/") if part not in ("", ".")]
                if ".." in parts:
                    raise TreeError("bad_archive", "a name in it has a part ..")
                if parts:
                    _unpack(tree, layers[0], destination, parts, tar, info, keep_owner=keep_owner)
    except (tarfile.TarError, EOFError, KeyError) as error:  # KeyError: a hard link that leads nowhere.
        raise TreeError("bad_archive", f"the archive cannot be unpacked: {error}") from error


def check_folder(layers: list[Path], path: str) -> str:
    """Return the real path of a directory.

    Raises:
        TreeError: it is none.
    """
    tree = load(layers)
    found = _resolve(tree, path, follow_last=True)
    if found not in tree:
        raise TreeError("path_not_found", f"{path}: No such file or directory")
    if tree[found]["kind"].encode() != tarfile.DIRTYPE:
        raise TreeError("not_a_directory", f"{path}: Not a directory")
    return found


def _node(kind: bytes, mode: int, data: bytes = b"") -> Node:
    content = base64.b64encode(data).decode()
    own = {"uid": 0, "gid": 0, "mtime_ns": 0, "target": ""}
    return {"kind": kind.decode(), "mode": mode, "data": content, **own}


def _add(tar: tarfile.TarFile, name: str, node: Node) -> None:
    data = base64.b64decode(node["data"])
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.linkname, info.size = (
        node["kind"].encode(),
        node["mode"],
        node["target"],
        len(data),
    )
    info.uid, info.gid, info.mtime = node["uid"], node["gid"], node["mtime_ns"] // 1_000_000_000
    tar.addfile(info, io.BytesIO(data))


def _unpack(
    tree: dict[str, Node],
    top: Path,
    destination: str,
    parts: list[str],
    tar: tarfile.TarFile,
    info: tarfile.TarInfo,
    *,
    keep_owner: bool,
) -> None:
    path = _resolve(tree, posixpath.join(destination, *parts), follow_last=False)
    if path != destination and not path.startswith(destination.rstrip("/") + "/"):
        raise TreeError("bad_archive", f"{info.name} leads out of the directory it is unpacked into")
    if path in tree and tree[path]["kind"].encode() == tarfile.DIRTYPE and not info.isdir():
        raise TreeError("is_a_directory", f"{info.name}: Is a directory")
    content = tar.extractfile(info) if info.isreg() or info.islnk() else None
    kind = tarfile.REGTYPE if info.islnk() or info.isreg() else info.type
    node = _node(kind, info.mode & 0o7777, content.read() if content else b"")
    node["target"], node["mtime_ns"] = info.linkname if info.issym() else "", int(info.mtime * 1_000_000_000)
    if keep_owner:
        node["uid"], node["gid"] = info.uid, info.gid
    parent = posixpath.dirname(path)
    while parent not in tree:
        tree[parent] = _node(tarfile.DIRTYPE, 0o755)
        write_file(top, _KEY + parent, json.dumps(tree[parent]))
        parent = posixpath.dirname(parent)
    tree[path] = node
    write_file(top, _KEY + path, json.dumps(node))


def _resolve(tree: dict[str, Node], path: str, *, follow_last: bool) -> str:
    """Return where `path` leads, whether or not something is there."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    found, link_count = "/", 0
    while parts:
        part = parts.pop(0)
        found = posixpath.dirname(found) if part == ".." else posixpath.join(found, part)
        node = tree.get(found)
        if node is not None and node["kind"].encode() == tarfile.SYMTYPE and (parts or follow_last):
            link_count += 1
            if link_count > LINKS_MAX:
                raise TreeError("file_failed", f"{path}: Too many levels of symbolic links")
            parts = [*(part for part in node["target"].split("/") if part not in ("", ".")), *parts]
            found = "/" if node["target"].startswith("/") else posixpath.dirname(found)
    return found
