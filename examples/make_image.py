"""Make an OCI image of a few files, with nothing but the standard library.

    python examples/make_image.py FOLDER

writes an image layout with busybox in it, which `ramet image import FOLDER` takes. It also shows how
little an image is: a tar of files, two JSON documents that point at it, and an index that names it.
"""

import hashlib
import io
import json
import shutil
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

APPLETS = ("sh", "ls", "cat", "echo", "sleep", "ps", "mount", "ip", "wget", "httpd", "hostname", "date", "id")


def make_oci_layout(
    folder: Path,
    name: str,
    files: Mapping[str, tuple[int, bytes]],
    symlinks: Mapping[str, str],
    config: Mapping[str, object],
) -> None:
    """Write an OCI image layout with one image of one layer.

    Args:
        folder: made; must not exist yet or be empty.
        name: what the image is called, such as "demo" or "demo:1".
        files: path in the image to (mode, content); folders on the way are made.
        symlinks: path in the image to the link's target.
        config: as in an OCI image config: "Cmd", "Env", "Entrypoint", "WorkingDir" ...
    """
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(content: bytes, media_type: str) -> dict[str, object]:
        digits = hashlib.sha256(content).hexdigest()
        (blobs / digits).write_bytes(content)
        return {"mediaType": media_type, "digest": f"sha256:{digits}", "size": len(content)}

    layer = put(_layer(files, symlinks), "application/vnd.oci.image.layer.v1.tar")
    image = {
        "architecture": "amd64",
        "os": "linux",
        "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(image).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [layer],
    }
    entry = put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": name}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def busybox_files(busybox: Path) -> tuple[dict[str, tuple[int, bytes]], dict[str, str]]:
    """Return files and symlinks of a small system around a static busybox."""
    files = {
        "bin/busybox": (0o755, busybox.read_bytes()),
        "etc/passwd": (0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
        "etc/group": (0o644, b"root:x:0:\nnogroup:x:65534:\n"),
        "root/.keep": (0o600, b""),
        "tmp/.keep": (0o600, b""),
    }
    return files, {f"bin/{applet}": "busybox" for applet in APPLETS}


def _layer(files: Mapping[str, tuple[int, bytes]], symlinks: Mapping[str, str]) -> bytes:
    folders = {str(parent) for path in (*files, *symlinks) for parent in Path(path).parents} - {"."}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(folders):
            entry = tarfile.TarInfo(path)
            entry.type = tarfile.DIRTYPE
            entry.mode = 0o1777 if path == "tmp" else 0o755
            tar.addfile(entry)
        for path, (mode, content) in files.items():
            entry = tarfile.TarInfo(path)
            entry.mode, entry.size = mode, len(content)
            tar.addfile(entry, io.BytesIO(content))
        for path, target in symlinks.items():
            entry = tarfile.TarInfo(path)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return buffer.getvalue()


def main() -> None:
    """Write a busybox image to the folder named on the command line."""
    busybox = shutil.which("busybox")
    if busybox is None or len(sys.argv) != 2:
        sys.exit("usage: make_image.py FOLDER   (needs a static busybox: apt install busybox-static)")
    files, symlinks = busybox_files(Path(busybox))
    config = {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], "WorkingDir": "/root"}
    make_oci_layout(Path(sys.argv[1]), "busybox", files, symlinks, config)


if __name__ == "__main__":
    main()
