"""Images for tests, honest and otherwise, made of the standard library only."""

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from ramet.images.documents import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST

if sys.version_info >= (3, 14):
    from compression import zstd as zstd
else:
    from backports import zstd as zstd

Json = dict[str, object]


@dataclass(frozen=True)
class Entry:
    """One entry of a layer."""

    name: str
    content: bytes = b""
    type: bytes = tarfile.REGTYPE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: float = 1_600_000_000
    target: str = ""
    device: tuple[int, int] = (0, 0)
    pax: Mapping[str, str] = field(default_factory=dict)


def file(name: str, content: bytes = b"", **attributes: object) -> Entry:
    return replace(Entry(name, content), **attributes)  # type: ignore[arg-type]


def folder(name: str, mode: int = 0o755, **attributes: object) -> Entry:
    return replace(Entry(name, type=tarfile.DIRTYPE, mode=mode), **attributes)  # type: ignore[arg-type]


def symlink(name: str, target: str) -> Entry:
    return Entry(name, type=tarfile.SYMTYPE, target=target, mode=0o777)


def hardlink(name: str, target: str) -> Entry:
    return Entry(name, type=tarfile.LNKTYPE, target=target)


def tar(entries: Iterable[Entry], dialect: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=dialect, encoding="utf-8", errors="surrogateescape"
    ) as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.mode, info.size = entry.type, entry.mode, len(entry.content)
            info.uid, info.gid, info.mtime = entry.uid, entry.gid, cast("int", entry.mtime)
            info.linkname = entry.target
            info.devmajor, info.devminor = entry.device
            info.pax_headers = dict(entry.pax)
            archive.addfile(info, io.BytesIO(entry.content) if entry.content else None)
    return buffer.getvalue()


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass
class Blobs:
    """Content by digest, and the documents of an image made of it."""

    by_digest: dict[str, bytes] = field(default_factory=dict)

    def put(self, content: bytes, media_type: str, **more: object) -> Json:
        digest = digest_of(content)
        self.by_digest[digest] = content
        return {"mediaType": media_type, "digest": digest, "size": len(content), **more}

    def put_json(self, value: Json, media_type: str, **more: object) -> Json:
        return self.put(json.dumps(value).encode(), media_type, **more)

    def config(self, layers: list[bytes], architecture: str = "amd64", config: Json | None = None) -> Json:
        value: Json = {
            "architecture": architecture,
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]},
        }
        return self.put_json(value, OCI_CONFIG)

    def manifest(
        self, layers: list[bytes], architecture: str = "amd64", config: Json | None = None, **more: object
    ) -> Json:
        """Add an image of gzipped layers, and return its manifest's descriptor."""
        value: Json = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.config(layers, architecture, config),
            "layers": [self.put(gzip.compress(layer, mtime=0), f"{OCI_LAYER}+gzip") for layer in layers],
        }
        return self.put_json(value, OCI_MANIFEST, **more)

    def index(self, descriptors: list[Json], **more: object) -> Json:
        value: Json = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": descriptors}
        return self.put_json(value, OCI_INDEX, **more)

    def files(self, descriptors: list[Json]) -> dict[str, bytes]:
        """Return the files of a layout whose index.json lists `descriptors`."""
        found = {
            "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
            "index.json": json.dumps({"schemaVersion": 2, "manifests": descriptors}).encode(),
        }
        for digest, content in self.by_digest.items():
            found[f"blobs/{digest.replace(':', '/')}"] = content
        return found


def named(name: str) -> Json:
    """Annotations that give an entry of index.json its name."""
    return {"org.opencontainers.image.ref.name": name}


def write_files(place: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


def write_layout(
    place: Path, layers: list[bytes], name: str = "app:1", config: Json | None = None
) -> tuple[Path, str]:
    """Write a layout of one image, and return its path and the manifest's digest."""
    blobs = Blobs()
    manifest = blobs.manifest(layers, config=config, annotations=named(name))
    return write_files(place, blobs.files([manifest])), str(manifest["digest"])


def archive_of(files: Mapping[str, bytes], links: Mapping[str, str] | None = None) -> bytes:
    return tar(
        [file(name, content) for name, content in files.items()]
        + [symlink(name, target) for name, target in (links or {}).items()]
    )


def docker_save(
    layers: list[bytes],
    tags: list[str] | None,
    *,
    packed: bool = False,
    links: Mapping[str, str] | None = None,
) -> bytes:
    """What docker before version 25 saves: no index, a folder for each layer."""
    blobs = Blobs()
    config = blobs.config(layers)
    digits = str(config["digest"]).removeprefix("sha256:")
    files = {f"{digits}.json": blobs.by_digest[str(config["digest"])]}
    names = []
    for number, layer in enumerate(layers):
        name = f"layer{number}/layer.tar"
        names.append(name)
        if name not in (links or {}):
            files[name] = gzip.compress(layer, mtime=0) if packed else layer
    manifest = [{"Config": f"{digits}.json", "RepoTags": tags, "Layers": names}]
    files["manifest.json"] = json.dumps(manifest).encode()
    return archive_of(files, links)


@dataclass(frozen=True)
class Node:
    """What a mounted image shows of one path."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    nlink: int
    ino: int
    rdev: int
    size_bytes: int
    target: str
    content: str
    xattrs: Mapping[str, str]


def read_tree(top: Path) -> dict[str, Node]:
    """Return everything below `top`, by path; the content of files as a hash."""
    found: dict[str, Node] = {}
    for path in [top, *top.rglob("*")]:
        status = path.lstat()
        found["/" + str(path.relative_to(top)).removeprefix(".")] = Node(
            mode=status.st_mode,
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            nlink=status.st_nlink,
            ino=status.st_ino,
            rdev=status.st_rdev,
            size_bytes=status.st_size,
            target=os.readlink(path) if path.is_symlink() else "",
            content=digest_of(path.read_bytes()) if path.is_file() and not path.is_symlink() else "",
            xattrs={
                key: os.getxattr(path, key, follow_symlinks=False).hex()
                for key in os.listxattr(path, follow_symlinks=False)
            },
        )
    return found


def read_erofs(image: Path, mountpoint: Path) -> dict[str, Node]:
    """Mount `image` in a mount namespace that ends with this call, and return what is in it."""
    mountpoint.mkdir()
    script = 'mount -o loop,ro -t erofs "$1" "$2" && exec "$3" -m tests.images.build "$2"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(image), str(mountpoint), sys.executable],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return {path: Node(**value) for path, value in json.loads(done.stdout).items()}


if __name__ == "__main__":
    print(json.dumps({path: vars(node) for path, node in read_tree(Path(sys.argv[1])).items()}))
