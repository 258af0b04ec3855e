"""A real Debian as an image: made once by mmdebstrap, as small as apt allows.

RAMET_DEBIAN_ROOT names the tar of its root file system; without, it is made from the mirror that this
host's apt uses, and kept in .cache.
"""

import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ramet.images.documents import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from tests.images.build import Json, digest_of

CACHED = Path(__file__).parents[2] / ".cache" / "images" / "debian-root.tar"
EXCLUDED = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")

# Whoever imports this is not yet in a namespace of a test's own, from where no mirror can be reached.
_NETWORK = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def debian_root() -> Path:
    """Return the tar of a Debian root file system; makes it where there is none yet."""
    named = os.environ.get("RAMET_DEBIAN_ROOT")
    if named:
        return Path(named)
    if not CACHED.exists():
        CACHED.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHED.parent, prefix="fresh.") as scratch:
            fresh = Path(scratch) / "root.tar"
            _make(fresh)
            fresh.rename(CACHED)  # What was cut off is never taken for whole.
    return CACHED


def write_layout(folder: Path, layers: Sequence[Path], config: Json) -> None:
    """Write an OCI layout of one image whose layers are links to these tars."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(value: Json, media_type: str) -> Json:
        content = json.dumps(value).encode()
        (blobs / digest_of(content).partition(":")[2]).write_bytes(content)
        return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}

    descriptors: list[Json] = []
    for layer in layers:
        with layer.open("rb") as file:
            digits = hashlib.file_digest(file, "sha256").hexdigest()
        (blobs / digits).symlink_to(layer.resolve())
        size_bytes = layer.stat().st_size
        descriptors.append({"mediaType": OCI_LAYER, "digest": f"sha256:{digits}", "size": size_bytes})
    diff_ids = [descriptor["digest"] for descriptor in descriptors]
    document: Json = {
        "architecture": "amd64",
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    manifest: Json = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": put(document, OCI_CONFIG),
        "layers": descriptors,
    }
    index: Json = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [put(manifest, OCI_MANIFEST)],
    }
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _make(tar: Path) -> None:
    suite, mirror = _mirror()
    command = ["nsenter", f"--net=/proc/{os.getpid()}/fd/{_NETWORK}"]
    command += ["mmdebstrap", "--quiet", "--mode=root", "--variant=apt", "--format=tar"]
    command += ['--aptopt=Acquire::Languages "none"']
    for key, value in _proxies():
        command.append(f'--aptopt={key} "{value}"')
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED]
    subprocess.run([*command, suite, str(tar), f"deb {mirror} {suite} main"], check=True)


def _mirror() -> tuple[str, str]:
    """Return the suite and mirror of Debian proper that apt's own configuration names."""
    targets = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(LABEL) $(RELEASE) $(SITE)"]
    listed = subprocess.run([*targets, "Created-By: Packages"], check=True, capture_output=True, text=True)
    for line in listed.stdout.splitlines():
        match line.split():
            case ["Debian", "Debian", suite, mirror] if "-" not in suite:
                return suite, mirror
    raise AssertionError("apt's configuration names no mirror of Debian; set RAMET_DEBIAN_ROOT")


def _proxies() -> list[tuple[str, str]]:
    listed = subprocess.run(["apt-config", "dump", "--format", "%f %v%n"], check=True, capture_output=True)
    lines = listed.stdout.decode().splitlines()
    pairs = [(key, value) for key, _, value in (line.partition(" ") for line in lines)]
    return [(key, value) for key, value in pairs if key.lower().endswith("::proxy") and value]
