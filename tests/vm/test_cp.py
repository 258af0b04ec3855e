"""`ramet cp` with a real daemon and a real guest, from outside."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.trees import FILE_COUNT, manifest, write_large_tree
from tests.vm.daemon import Daemon

pytestmark = pytest.mark.vm

BIG_BYTES = 200 << 20
CHUNK_BYTES = 1 << 20


def write_random(path: Path, size_bytes: int) -> str:
    """Write random bytes, and return their hash."""
    digest = hashlib.sha256()
    with path.open("wb") as out:
        for _ in range(size_bytes // CHUNK_BYTES):
            data = os.urandom(CHUNK_BYTES)
            digest.update(data)
            out.write(data)
    return digest.hexdigest()


def hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def timed(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def test_a_file_of_200_mb_goes_in_and_comes_out_the_same(served: Daemon, tmp_path: Path) -> None:
    digest = write_random(tmp_path / "big", BIG_BYTES)

    in_s = timed(lambda: served.ramet("cp", f"{tmp_path}/big", "web:/var"))
    out_s = timed(lambda: served.ramet("cp", "web:/var/big", f"{tmp_path}/back"))

    print(f"in {BIG_BYTES / in_s / 1e6:.1f} MB/s, out {BIG_BYTES / out_s / 1e6:.1f} MB/s")
    assert hash_of(tmp_path / "back") == digest
    assert served.sh("web", "stat -c %s /var/big; rm /var/big") == f"{BIG_BYTES}\n"


def test_a_tree_of_5000_files_arrives_equal_both_ways(served: Daemon, tmp_path: Path) -> None:
    write_large_tree(tmp_path / "tree")

    in_s = timed(lambda: served.ramet("cp", "-a", f"{tmp_path}/tree", "web:/var/copy"))
    out_s = timed(lambda: served.ramet("cp", "-a", "web:/var/copy", f"{tmp_path}/back"))

    print(f"in {in_s:.1f} s, out {out_s:.1f} s")
    sent, returned = manifest(tmp_path / "tree"), manifest(tmp_path / "back")
    assert len(sent) > FILE_COUNT
    assert returned.keys() == sent.keys()
    assert [name for name in sent if returned[name] != sent[name]] == []
    # And what was in the guest between was no mere copy of the archive.
    assert served.sh(
        "web", "cd /var/copy; find . -type l | wc -l; find . -type p | wc -l; rm -r /var/copy"
    ) == (f"{FILE_COUNT // 10}\n" * 2)


def test_a_file_belongs_to_who_copies_it_unless_owners_are_kept(served: Daemon, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    os.chown(tmp_path / "mine", 77, 78)
    (tmp_path / "mine").chmod(0o4755)
    served.ramet("cp", f"{tmp_path}/mine", "web:/var/a")
    served.ramet("cp", "-a", f"{tmp_path}/mine", "web:/var/b")
    assert served.sh("web", "cd /var; stat -c '%u %g %a' a b") == "0 0 4755\n77 78 4755\n"
    served.ramet("cp", "web:/var/b", f"{tmp_path}/plain")
    served.ramet("cp", "-a", "web:/var/b", f"{tmp_path}/kept")
    found = [
        (path.stat().st_uid, oct(path.stat().st_mode)) for path in (tmp_path / "plain", tmp_path / "kept")
    ]
    assert found == [(os.getuid(), "0o100755"), (77, "0o104755")]
    served.sh("web", "rm /var/a /var/b")


def test_names_links_and_folders_are_as_with_docker(served: Daemon, tmp_path: Path) -> None:
    served.sh(
        "web",
        "mkdir -p /var/n/sub; cd /var/n; echo f >sub/f; ln -s sub to; ln -s sub/f file; ln -s /var/n /l",
    )
    (tmp_path / "s").mkdir()
    (tmp_path / "s/new").write_text("new")
    served.ramet("cp", f"{tmp_path}/s/.", "web:/var/n/to")  # Through a link to a folder.
    served.ramet("cp", f"{tmp_path}/s/new", "web:/l/file")  # What a link leads to is replaced.
    served.ramet("cp", f"{tmp_path}/s", "web:/l/")
    assert served.sh("web", "cd /var/n; cat sub/new sub/f s/new; readlink to; readlink file") == (
        "newnewnewsub\nsub/f\n"
    )
    for source, name in [("/l", "link"), ("/l/", "a"), ("/var/n/.", "b"), ("/var/n/to", "to")]:
        served.ramet("cp", f"web:{source}", f"{tmp_path}/{name}")
    assert os.readlink(tmp_path / "link") == "/var/n"
    assert os.readlink(tmp_path / "to") == "sub"
    assert (tmp_path / "a/sub/f").read_text() == (tmp_path / "b/sub/f").read_text() == "new"
    served.ramet("cp", "-L", "web:/l", f"{tmp_path}/followed")
    assert (tmp_path / "followed/s/new").read_text() == "new"
    served.sh("web", "rm -r /var/n /l")


def test_archives_go_through_pipes(served: Daemon, tmp_path: Path) -> None:
    served.sh("web", "mkdir -p /var/p/q; echo content >/var/p/q/f")
    archive = served.ramet("cp", "web:/var/p", "-")
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert sorted(tar.getnames()) == ["p", "p/q", "p/q/f"]
    served.sh("web", "mkdir /var/o")
    served.ramet("cp", "-", "web:/var/o", stdin=archive)
    assert served.sh("web", "cat /var/o/p/q/f; rm -r /var/o /var/p") == "content\n"


def test_what_cannot_be_copied_is_told_in_one_line(served: Daemon, tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    write_random(tmp_path / "large", CHUNK_BYTES)
    served.sh(
        "web", "mkdir /var/r; mknod /var/dev c 1 3; mount -t tmpfs -o size=64k none /var/r; mkdir /var/r/f"
    )
    for source, destination, message in [
        ("web:/none", f"{tmp_path}/x", "Error: there is nothing at web:/none"),
        ("web:/var/dev", f"{tmp_path}/x", "is a device"),
        (f"{tmp_path}/f", "web:/none/x", "Error: there is no directory web:/none"),
        (f"{tmp_path}/f", "web:/var/r", "f: Is a directory"),
        (f"{tmp_path}/large", "web:/var/r/full", "No space left on device"),
    ]:
        command = [sys.executable, "-m", "ramet.cli", "cp", "-L", source, destination]
        done = subprocess.run(command, env=served.environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, ""), (source, destination)
        assert done.stderr.startswith("Error: ")
        assert message in done.stderr
    assert served.sh("web", "ls -A /var/r; umount /var/r; rm -r /var/r /var/dev") == "f\n"
