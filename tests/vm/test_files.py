"""Files into guests and out of them, with a real guest."""

import hashlib
import io
import os
import tarfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from ramet.guest.errors import BadArchive, PathIsDirectory, PathNotDirectory, PathNotFound
from tests.trees import FILE_COUNT, write_large_tree
from tests.vm.site import Children, Site

pytestmark = [pytest.mark.vm, pytest.mark.anyio]

BIG_BYTES = 200 << 20
CHUNK_BYTES = 1 << 20


async def chunks_of(data: bytes | io.BufferedReader) -> AsyncIterator[bytes]:
    stream = io.BytesIO(data) if isinstance(data, bytes) else data
    while chunk := stream.read(CHUNK_BYTES):
        yield chunk


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return archive.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


async def read_archive(site: Site, name: str, path: str, *, follow_links: bool = False) -> bytes:
    written = bytearray()
    async with site.fleet.open_archive(name, path, follow_links=follow_links) as chunks:
        async for chunk in chunks:
            written += chunk
    return bytes(written)


async def test_a_large_file_goes_in_and_comes_out_the_same(site: Site, source: str, tmp_path: Path) -> None:
    path = tmp_path / "big.tar"
    digest = hashlib.sha256()
    block = os.urandom(CHUNK_BYTES)
    info = member("big")
    info.size = BIG_BYTES
    with path.open("wb") as out:
        out.write(info.tobuf(tarfile.PAX_FORMAT))
        for index in range(BIG_BYTES // CHUNK_BYTES):
            piece = index.to_bytes(8) + block[8:]
            digest.update(piece)
            out.write(piece)
        out.write(bytes(2 * tarfile.BLOCKSIZE))
    began = time.perf_counter()
    with path.open("rb") as archive:
        await site.fleet.put_archive(source, "/var", chunks_of(archive), keep_owner=False)
    into_s = time.perf_counter() - began
    began = time.perf_counter()
    got_path = tmp_path / "got.tar"
    with got_path.open("wb") as out:
        async with site.fleet.open_archive(source, "/var/big", follow_links=False) as chunks:
            async for chunk in chunks:
                out.write(chunk)
    out_s = time.perf_counter() - began
    print(f"in {BIG_BYTES / into_s / 1e6:.1f} MB/s, out {BIG_BYTES / out_s / 1e6:.1f} MB/s")
    with tarfile.open(got_path) as tar:
        content = tar.extractfile("big")
        assert content is not None
        got = hashlib.sha256()
        while piece := content.read(CHUNK_BYTES):
            got.update(piece)
        assert got.digest() == digest.digest()
    await site.sh(source, "rm /var/big")


def facts(tar: tarfile.TarFile) -> dict[str, tuple[object, ...]]:
    """Return what an archive says of each of its members; hard links as whatever they are links to."""
    inodes: dict[str, str] = {}
    found: dict[str, tuple[object, ...]] = {}
    for info in tar:
        first = info
        if info.islnk():
            inodes[info.name] = info.linkname
            first = tar.getmember(info.linkname)
        data = tar.extractfile(first) if first.isreg() else None
        content = data.read() if data else b""
        target = info.linkname if info.issym() else ""
        facts = (first.type, first.mode, first.uid, first.gid, round(first.mtime, 3), target, content)
        found[info.name] = facts
    groups: dict[str, list[str]] = {}
    for name, link in inodes.items():
        groups.setdefault(link, [link]).append(name)
    for names in groups.values():
        for name in names:
            found[name] += (tuple(sorted(names)),)
    return found


async def test_a_tree_with_links_modes_and_owners_comes_back_equal(
    site: Site, source: str, tmp_path: Path
) -> None:
    write_large_tree(tmp_path / "tree")
    sent = tmp_path / "sent.tar"
    with tarfile.open(sent, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.add(tmp_path / "tree", "tree")
    with sent.open("rb") as archive:
        await site.fleet.put_archive(source, "/var", chunks_of(archive), keep_owner=True)
    returned = await read_archive(site, source, "/var/tree")
    await site.sh(source, "rm -r /var/tree")
    with tarfile.open(sent) as ours, tarfile.open(fileobj=io.BytesIO(returned)) as theirs:
        expected, got = facts(ours), facts(theirs)
    assert len(expected) > FILE_COUNT
    assert got.keys() == expected.keys()
    assert [name for name in expected if got[name] != expected[name]] == []


async def test_what_is_at_a_path_is_told(site: Site, source: str) -> None:
    await site.sh(source, "cd /var; echo four >f; chmod 640 f; chown 7:8 f; ln -s f l; ln -s loop loop")
    found = await site.fleet.stat_path(source, "/var/l", follow_links=False)
    assert (found.exists, found.is_symlink, found.link_target, found.is_file) == (True, True, "f", False)
    found = await site.fleet.stat_path(source, "/var/l", follow_links=True)
    assert (found.is_file, found.size_bytes, found.mode, found.uid, found.gid) == (True, 5, 0o640, 7, 8)
    assert abs(found.mtime_ns - time.time_ns()) < 600e9
    assert (await site.fleet.stat_path(source, "/var", follow_links=False)).is_dir
    missing = await site.fleet.stat_path(source, "/var/none", follow_links=True)
    assert (missing.exists, missing.error) == (False, None)
    loop = await site.fleet.stat_path(source, "/var/loop", follow_links=True)
    assert not loop.exists
    assert loop.error is not None
    await site.sh(source, "cd /var; rm f l loop")


async def test_names_in_an_archive_begin_with_the_last_part_of_the_path(site: Site, source: str) -> None:
    await site.sh(source, "mkdir /var/n; cd /var/n; echo a >a; ln -s a to; ln -s /var/n /var/ln")

    async def names(path: str, *, follow_links: bool = False) -> list[str]:
        data = await read_archive(site, source, path, follow_links=follow_links)
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            return sorted(tar.getnames())

    assert await names("/var/n") == ["n", "n/a", "n/to"]
    assert await names("/var/n/.") == [".", "./a", "./to"]
    assert await names("/var/ln") == ["ln"]
    assert await names("/var/ln", follow_links=True) == ["ln", "ln/a", "ln/to"]
    assert "./proc" in await names("/")
    await site.sh(source, "rm -r /var/n /var/ln")


async def test_what_cannot_be_copied_is_refused_with_its_reason(site: Site, source: str) -> None:
    await site.sh(source, "cd /var; echo x >file; mkdir -p in/dir; ln -s /etc in/out")
    with pytest.raises(PathNotFound):
        await read_archive(site, source, "/var/none")
    good = tar_of((member("dir"), b"x"))
    for path, data, error in [
        ("/var/none", good, PathNotFound),
        ("/var/file", good, PathNotDirectory),
        ("/var/in", good, PathIsDirectory),
        ("/var/in", b"", BadArchive),
        ("/var/in", os.urandom(2048), BadArchive),
        ("/var/in", good[:600], BadArchive),
        ("/var/in", tar_of((member("../up"), b"x")), BadArchive),
        ("/var/in", tar_of((member("out/up"), b"x")), BadArchive),
        ("/var/in", tar_of((member("l", tarfile.SYMTYPE, ".."), b""), (member("l/up"), b"x")), BadArchive),
        ("/var/in", tar_of((member("h", tarfile.LNKTYPE, "out/passwd"), b"")), BadArchive),
    ]:
        with pytest.raises(error):
            await site.fleet.put_archive(source, path, chunks_of(data), keep_owner=False)
    assert await site.sh(source, "cd /var; cat file; ls -A in; ls up /etc/up 2>/dev/null || true") == (
        "x\ndir\nl\nout\n"
    )
    await site.sh(source, "cd /var; rm -r in file")


async def test_holes_stay_holes(site: Site, source: str) -> None:
    size = 64 << 20
    await site.sh(source, f"cd /var; mkdir s; dd if=/dev/zero of=s/f bs=1 seek={size} count=0 2>/dev/null")
    await site.sh(source, "cd /var; echo end >>s/f; mkdir t")
    archive = await read_archive(site, source, "/var/s/f")
    await site.fleet.put_archive(source, "/var/t", chunks_of(archive), keep_owner=True)
    done = await site.sh(source, "cd /var; cmp s/f t/f; du -k t/f; rm -r s t")
    assert int(done.split()[0]) <= 16


async def test_a_cancelled_copy_leaves_no_half_file_and_a_guest_that_answers(site: Site, source: str) -> None:
    began = anyio.Event()
    info = member("half")
    info.size = 64 << 20

    async def endless() -> AsyncIterator[bytes]:
        yield info.tobuf(tarfile.PAX_FORMAT)
        yield bytes(CHUNK_BYTES) + os.urandom(CHUNK_BYTES)
        began.set()
        await anyio.sleep_forever()

    await site.sh(source, "mkdir /var/c")
    async with anyio.create_task_group() as group:

        async def put() -> None:
            await site.fleet.put_archive(source, "/var/c", endless(), keep_owner=False)

        group.start_soon(put)
        await began.wait()
        group.cancel_scope.cancel()
    await site.wait_for(source, '[ -z "$(ls -A /var/c)" ]')
    await site.sh(source, "rmdir /var/c; dd if=/dev/zero of=/var/long bs=1M count=16 2>/dev/null")
    async with site.fleet.open_archive(source, "/var/long", follow_links=False) as chunks:
        assert await anext(chunks)
    assert await site.sh(source, "rm /var/long; echo alive") == "alive\n"


async def test_a_copy_asked_of_a_frozen_guest_begins_at_the_thaw(
    site: Site, source: str, children: Children
) -> None:
    await children.fork(source, "cold")
    channel = await site.rig("cold").channel()
    await channel.freeze()
    stat = site.fleet.stat_path("cold", "/var/state", follow_links=True)
    async with anyio.create_task_group() as group:
        found: list[bool] = []

        async def ask() -> None:
            found.append((await stat).exists)

        group.start_soon(ask)
        assert (await channel.health()).workload.state == "frozen"
        assert found == []
        await channel.thaw()
    assert found == [True]


async def test_what_is_put_belongs_to_the_workloads_user(site: Site, source: str) -> None:
    info = member("mine")
    info.uid, info.gid, info.mode = 77, 78, 0o6755
    await site.fleet.put_archive(source, "/var", chunks_of(tar_of((info, b"x"))), keep_owner=False)
    assert await site.sh(source, "stat -c '%u %g %a' /var/mine") == "0 0 6755\n"
    await site.fleet.put_archive(source, "/var", chunks_of(tar_of((info, b"y"))), keep_owner=True)
    assert await site.sh(source, "stat -c '%u %g %a' /var/mine; rm /var/mine") == "77 78 6755\n"
