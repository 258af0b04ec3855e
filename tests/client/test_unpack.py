"""Trees packed and unpacked on this host, and archives of guests that mean ill."""

import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramet.client.host_files import (
    ArchiveUnsafe,
    HostPathIsDirectory,
    HostPathNotDirectory,
    HostPathNotFound,
    HostPathUnsupported,
)
from ramet.client.pack import pack
from ramet.client.unpack import unpack
from ramet.core.errors import RametError
from ramet.wire_api.tar import TarDamaged
from tests.trees import manifest

MTIME_NS = 1_600_000_000_123_456_789
CHUNK_BYTES = 10_007  # So that nothing in an archive ends where a chunk does.


def write_tree(root: Path) -> None:
    (root / "sub" / "empty").mkdir(parents=True)
    (root / "big").write_bytes(os.urandom(700_000))
    (root / "none").touch()
    (root / "sub" / ("n" * 255)).write_text("a long name")
    Path(os.fsdecode(bytes(root) + b"/\xff\xfe")).write_text("no text")
    (root / "sub" / "link").symlink_to("../big")
    (root / "away").symlink_to("/etc")
    os.link(root / "big", root / "sub" / "big again")
    os.link(root / "sub" / "link", root / "sub" / "link again", follow_symlinks=False)
    os.mkfifo(root / "pipe")
    os.lchown(root / "away", 12, 13)
    os.chown(root / "big", 1234, 2_345_678)
    (root / "big").chmod(0o6711)
    (root / "none").chmod(0)
    (root / "sub").chmod(0o2750)
    (root / "sub" / "empty").chmod(0o1777)
    for path in (root / "sub" / "link", root / "big", root / "sub" / "empty", root / "sub"):
        os.utime(path, ns=(MTIME_NS, MTIME_NS + 1), follow_symlinks=False)


def chunks_of(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), CHUNK_BYTES):
        yield data[at : at + CHUNK_BYTES]


def tar_of(*members: tarfile.TarInfo) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info in members:
            data = b"content" if info.isreg() else b""
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return archive.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **facts: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    for fact, value in facts.items():
        setattr(info, fact, value)
    return info


def names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder that archives are unpacked into, with something to be careful about in it."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    (folder / "passwd").symlink_to("/etc/passwd")
    return folder


def test_a_tree_survives_its_archive(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    write_tree(tmp_path / "here")
    archive = b"".join(pack(str(tmp_path / "here"), "name"))

    unpack(chunks_of(archive), str(tmp_path / "there"), name="copy", is_wrapped=True, keep_owner=True)

    assert manifest(tmp_path / "there" / "copy") == manifest(tmp_path / "here")


def test_the_standard_library_reads_what_is_packed(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    write_tree(tmp_path / "here")
    with tarfile.open(fileobj=io.BytesIO(b"".join(pack(str(tmp_path / "here"), ".")))) as archive:
        archive.extractall(tmp_path / "there", numeric_owner=True, filter="fully_trusted")
    assert [facts[3] for facts in manifest(tmp_path / "there").values()] == [
        facts[3] for facts in manifest(tmp_path / "here").values()
    ]


def test_sockets_are_left_out_and_devices_refused(tmp_path: Path) -> None:
    import socket

    (tmp_path / "here").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "here" / "socket"))
        with tarfile.open(fileobj=io.BytesIO(b"".join(pack(str(tmp_path / "here"), "x")))) as archive:
            assert archive.getnames() == ["x"]
    with pytest.raises(HostPathUnsupported):
        b"".join(pack("/dev/null", "x"))
    with pytest.raises(HostPathNotFound):
        b"".join(pack(str(tmp_path / "none"), "x"))


def test_a_file_that_shrinks_meanwhile_has_the_size_it_had(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (1 << 20))
    chunks = pack(str(path), "file")
    archive = next(chunks)
    os.truncate(path, 10)
    archive += b"".join(chunks)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        content = tar.extractfile("file")
        assert content is not None
        assert len(content.read()) == 1 << 20


@pytest.mark.parametrize(
    ("members", "error"),
    [
        ([member("../up")], ArchiveUnsafe),
        ([member("a/../../up")], ArchiveUnsafe),
        ([member("n" * 5000)], ArchiveUnsafe),
        ([member("out/up")], HostPathNotDirectory),
        ([member("out", tarfile.DIRTYPE)], HostPathNotDirectory),
        ([member("l", tarfile.SYMTYPE, ".."), member("l/up")], HostPathNotDirectory),
        ([member("l", tarfile.SYMTYPE, "/tmp"), member("l", tarfile.DIRTYPE)], HostPathNotDirectory),
        ([member("h", tarfile.LNKTYPE, "../secret")], ArchiveUnsafe),
        ([member("h", tarfile.LNKTYPE, "out/secret")], HostPathNotDirectory),
        ([member("h", tarfile.LNKTYPE, "none")], HostPathNotFound),
        ([member("h", tarfile.LNKTYPE, ".")], ArchiveUnsafe),
        ([member("null", tarfile.CHRTYPE, devmajor=1, devminor=3)], ArchiveUnsafe),
        ([member("disk", tarfile.BLKTYPE, devmajor=8)], ArchiveUnsafe),
        ([member("d", tarfile.DIRTYPE), member("d")], HostPathIsDirectory),
        ([member("f"), member("f/below")], HostPathNotDirectory),
        ([member("rich", uid=2**32 - 1)], ArchiveUnsafe),
        ([member("rich", gid=2**40)], ArchiveUnsafe),
        ([member(".")], ArchiveUnsafe),
    ],
)
def test_an_archive_that_means_ill_writes_nothing_outside(
    tmp_path: Path, folder: Path, members: list[tarfile.TarInfo], error: type[RametError]
) -> None:
    (tmp_path / "secret").write_text("secret")
    passwd = Path("/etc/passwd").stat()
    with pytest.raises(error):
        unpack(chunks_of(tar_of(*members)), str(folder), name=None, is_wrapped=False, keep_owner=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "secret"]
    assert (tmp_path / "secret").stat().st_nlink == 1
    assert not [name for name in names_below(folder) if ".ramet-copy-" in name]
    assert Path("/etc/passwd").stat() == passwd


def test_a_link_in_the_way_is_replaced_and_not_followed(folder: Path) -> None:
    passwd = Path("/etc/passwd").read_bytes()
    unpack([tar_of(member("passwd"))], str(folder), name=None, is_wrapped=False, keep_owner=False)
    assert (folder / "passwd").read_text() == "content"
    assert not (folder / "passwd").is_symlink()
    assert Path("/etc/passwd").read_bytes() == passwd


def test_a_time_that_cannot_be_is_the_nearest_that_can(folder: Path) -> None:
    far = member("far")
    far.pax_headers = {"mtime": "99999999999999999999"}
    unpack([tar_of(far)], str(folder), name=None, is_wrapped=False, keep_owner=False)
    assert (folder / "far").read_text() == "content"


@pytest.mark.parametrize("length", [0, 100, 512, 515, 1024, 2500])
def test_half_an_archive_is_damaged(folder: Path, length: int) -> None:
    archive = tar_of(member("a"), member("b", tarfile.DIRTYPE), member("b/c"))
    assert len(archive) > 2500
    with pytest.raises(TarDamaged):
        unpack([archive[:length]], str(folder), name=None, is_wrapped=False, keep_owner=False)
    assert not [name for name in names_below(folder) if ".ramet-copy-" in name]


def test_folders_that_the_archive_does_not_name_are_made(folder: Path) -> None:
    unpack([tar_of(member("a/b/c"))], str(folder), name="x", is_wrapped=True, keep_owner=False)
    assert (folder / "x/b/c").read_text() == "content"
    assert stat.S_IMODE((folder / "x/b").stat().st_mode) == 0o755
