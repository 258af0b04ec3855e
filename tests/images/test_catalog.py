"""An image is in the catalog whole or not at all, once for all its names."""

import asyncio
import gzip
import hashlib
import json
import os
import shutil
import stat
import struct
import tarfile
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from examples.make_image import busybox_files, make_oci_layout
from ramet.core.errors import RametError
from ramet.images import Catalog, Digest, ImageLimits, ImportProgress, Phase
from ramet.images.documents import OCI_LAYER, OCI_MANIFEST
from ramet.images.errors import (
    AmbiguousDigest,
    CatalogCorrupt,
    ConversionFailed,
    DigestMismatch,
    ImageInUse,
    ImageNotFound,
    InvalidReference,
)
from ramet.images.rootfs import detect_features
from tests.images.build import (
    Blobs,
    Entry,
    Json,
    docker_save,
    file,
    folder,
    hardlink,
    read_erofs,
    symlink,
    tar,
    write_files,
    write_layout,
)

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(os.geteuid() != 0, reason="owners and devices are for root"),
    pytest.mark.skipif(shutil.which("mkfs.erofs") is None, reason="needs erofs-utils"),
]

LAYER = tar([file("f", b"1"), folder("d")])


async def open_catalog(place: Path, limits: ImageLimits | None = None) -> Catalog:
    catalog = Catalog(place / "images", limits or ImageLimits())
    await catalog.open()
    return catalog


def files_of(place: Path) -> set[str]:
    """Every path of the catalog's folder."""
    top = place / "images"
    return {str(path.relative_to(top)) for path in top.rglob("*")}


def never(_: Digest) -> bool:
    return False


async def test_an_image_is_one_disk_that_holds_its_layers(tmp_path: Path) -> None:
    catalog = await open_catalog(tmp_path)
    capability = bytes.fromhex("0100000200040000000000000000000000000000")
    layers = [
        tar(
            [
                folder("bin", mtime=1234),
                file("bin/su", b"#!" * 5000, mode=0o4755, pax={"mtime": "1500000000.123456789"}),
                file(
                    "bin/ping",
                    b"ping",
                    uid=70_000,
                    gid=5,
                    pax={"SCHILY.xattr.security.capability": capability.decode("utf-8", "surrogateescape")},
                ),
                symlink("sh", "/bin/su"),
                file("old", b"x"),
                Entry("null", type=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
                Entry("pipe", type=tarfile.FIFOTYPE),
            ]
        ),
        tar([file(".wh.old"), hardlink("bin/pong", "bin/ping"), file("new", b"y")]),
    ]
    path, digest = write_layout(tmp_path / "layout", layers, "team/app:1")
    image = await catalog.import_path(path)
    assert (image.name, image.digest, image.tags) == (
        "docker.io/team/app:1",
        digest,
        ("docker.io/team/app:1",),
    )
    assert image.size_bytes == image.rootfs.stat().st_size

    tree = read_erofs(image.rootfs, tmp_path / "mnt")
    assert set(tree) == {"/", "/bin", "/bin/su", "/bin/ping", "/bin/pong", "/sh", "/null", "/pipe", "/new"}
    assert stat.S_IMODE(tree["/"].mode) == 0o755
    assert tree["/bin"].mtime_ns == 1234 * 10**9
    assert (tree["/bin/su"].mode, tree["/bin/su"].size_bytes) == (stat.S_IFREG | 0o4755, 10_000)
    assert tree["/bin/su"].mtime_ns == 1500000000123456789
    assert tree["/bin/su"].content == f"sha256:{hashlib.sha256(b'#!' * 5000).hexdigest()}"
    assert (tree["/bin/ping"].uid, tree["/bin/ping"].gid, tree["/bin/ping"].nlink) == (70_000, 5, 2)
    assert tree["/bin/ping"].ino == tree["/bin/pong"].ino
    assert tree["/bin/ping"].xattrs == {"security.capability": capability.hex()}
    assert tree["/sh"].target == "/bin/su"
    assert (tree["/null"].mode, tree["/null"].rdev) == (stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert stat.S_ISFIFO(tree["/pipe"].mode)
    content = f"content/{digest.replace(':', '-')}"
    assert files_of(tmp_path) == {
        "blobs",
        "content",
        content,
        f"{content}/rootfs.erofs",
        f"{content}/image.json",
        "pulls",
        "tags.json",
        "tmp",
    }


async def test_the_same_image_becomes_the_same_bytes(tmp_path: Path) -> None:
    layers = [tar([file("a/b/f", b"x" * 9000), folder("d"), symlink("s", "f")])]
    found = []
    for name in ("one", "two"):
        catalog = await open_catalog(tmp_path / name)
        path, _ = write_layout(tmp_path / name / "layout", layers)
        found.append((await catalog.import_path(path)).rootfs.read_bytes())
    assert found[0] == found[1]
    # `build_time` of the superblock (erofs_fs.h): of the youngest file, not of the clock.
    assert struct.unpack_from("<Q", found[0], 1024 + 24) == (1_600_000_000,)


async def test_images_are_found_by_name_and_digest_also_after_a_restart(tmp_path: Path) -> None:
    catalog = await open_catalog(tmp_path)
    path, digest = write_layout(tmp_path / "layout", [LAYER], "app:1", {"Cmd": ["/x"], "Labels": {"a": "b"}})
    image = await catalog.import_path(path)
    for found in (catalog, await open_catalog(tmp_path)):
        assert found.list() == [image]
        for ref in ("app:1", "docker.io/library/app:1", f"other@{digest}", digest, digest[7:19], digest[:20]):
            assert found.resolve(ref) == image
        for ref in ("app", "app:2", f"app@sha256:{'0' * 64}", "sha256:" + "0" * 64, "0" * 12, "0" * 64):
            with pytest.raises(ImageNotFound) as caught:
                found.resolve(ref)
            assert caught.value.code == "image_not_found"
        with pytest.raises(InvalidReference):
            found.resolve(digest[7:18] + "/..")


async def test_a_prefix_of_two_digests_is_ambiguous(tmp_path: Path) -> None:
    catalog = await open_catalog(tmp_path)
    path, digest = write_layout(tmp_path / "layout", [LAYER])
    await catalog.import_path(path)
    # Nobody can make two such digests; but a record can say so.
    place = tmp_path / "images/content" / digest.replace(":", "-")
    twin = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    shutil.copytree(place, place.with_name(twin.replace(":", "-")))
    record = place.with_name(twin.replace(":", "-")) / "image.json"
    record.write_text(record.read_text().replace(f'"{digest}"', f'"{twin}"'))
    catalog = await open_catalog(tmp_path)
    with pytest.raises(AmbiguousDigest):
        catalog.resolve(digest[7:30])
    assert catalog.resolve(twin).digest == twin


async def test_importing_again_only_adds_the_name(tmp_path: Path) -> None:
    catalog = await open_catalog(tmp_path)
    path, digest = write_layout(tmp_path / "layout", [LAYER], "app:1")
    first = await catalog.import_path(path)
    inode = first.rootfs.stat().st_ino
    second = await catalog.import_path(path, name="r.example/other")
    assert (second.name, second.digest) == ("r.example/other:latest", digest)
    assert second.tags == ("docker.io/library/app:1", "r.example/other:latest")
    assert second.rootfs.stat().st_ino == inode
    assert len(catalog.list()) == 1


async def test_a_name_moves_to_the_newer_image(tmp_path: Path) -> None:
    catalog = await open_catalog(tmp_path)
    one, first = write_layout(tmp_path / "one", [LAYER], "app")
    two, second = write_layout(tmp_path / "two", [], "app")
    await catalog.import_path(one)
    await catalog.import_path(two)
    assert catalog.resolve("app").digest == second
    assert catalog.resolve(first).tags == ()
    assert catalog.resolve(first).name == first


async def test_a_file_without_a_name_is_named_after_itself(tmp_path: Path) -> None:
    catalog = await open_catalog(tmp_path)
    (tmp_path / "My-App.tar.gz").write_bytes(gzip.compress(docker_save([LAYER], None)))
    assert (await catalog.import_path(tmp_path / "My-App.tar.gz")).name == "docker.io/library/my-app:latest"
    (tmp_path / "-.tar").write_bytes(docker_save([LAYER], None))
    with pytest.raises(InvalidReference):
        await catalog.import_path(tmp_path / "-.tar")


@pytest.mark.parametrize("packed", [True, False])
async def test_an_archive_of_old_docker_is_imported_with_all_its_names(tmp_path: Path, packed: bool) -> None:
    catalog = await open_catalog(tmp_path)
    links = {"layer1/layer.tar": "../layer0/layer.tar"}
    save = docker_save([LAYER, LAYER], ["app:1", "r.example/app:2"], packed=packed, links=links)
    (tmp_path / "a.tar").write_bytes(save)
    image = await catalog.import_path(tmp_path / "a.tar")
    assert image.tags == ("docker.io/library/app:1", "r.example/app:2")
    assert set(read_erofs(image.rootfs, tmp_path / "mnt")) == {"/", "/f", "/d"}


async def test_imports_of_one_image_at_once_share_the_work(tmp_path: Path) -> None:
    catalog = await open_catalog(tmp_path)
    path, _ = write_layout(tmp_path / "layout", [LAYER])
    phases: list[Phase] = []

    async def add(name: str) -> None:
        await catalog.import_path(path, name=name, progress=lambda step: phases.append(step.phase))

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(add, f"app:{number}")
    assert phases.count(Phase.CONVERTING) == 1
    assert phases.count(Phase.READY) == 5
    assert len(catalog.list()) == 1
    assert len(catalog.list()[0].tags) == 5


async def test_progress_goes_through_all_layers_to_the_end(tmp_path: Path) -> None:
    catalog = await open_catalog(tmp_path)
    layers = [tar([file("a", os.urandom(9 << 20))]), LAYER]
    path, _ = write_layout(tmp_path / "layout", layers)
    steps: list[ImportProgress] = []
    await catalog.import_path(path, progress=steps.append)
    assert [step.phase for step in steps[-2:]] == [Phase.CONVERTING, Phase.READY]
    assert [step.done_bytes for step in steps] == sorted(step.done_bytes for step in steps)
    assert {step.layer_index for step in steps} == {0, 1, 2}
    assert len([step for step in steps if step.layer_index == 0]) >= 3
    assert steps[-1].done_bytes == steps[-1].total_bytes > 9 << 20


@pytest.mark.parametrize("native", [True, False])
async def test_a_cancelled_import_leaves_nothing_and_can_be_repeated(tmp_path: Path, native: bool) -> None:
    catalog = await open_catalog(tmp_path)
    before = files_of(tmp_path)
    path, digest = write_layout(tmp_path / "layout", [tar([file("a", b"a" * (64 << 20))]), LAYER])
    begun = asyncio.Event()
    phases: list[Phase] = []

    def note(step: ImportProgress) -> None:
        begun.set()
        phases.append(step.phase)

    async def add() -> None:
        await catalog.import_path(path, progress=note)

    if native:
        task = asyncio.ensure_future(add())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        async with anyio.create_task_group() as group:
            group.start_soon(add)
            await begun.wait()
            group.cancel_scope.cancel()
    assert Phase.READY not in phases
    assert files_of(tmp_path) == before
    assert catalog.list() == []
    assert (await catalog.import_path(path)).digest == digest


def lying(kind: str) -> tuple[Blobs, Json]:
    """An image one of whose layers is not what its documents say."""
    blobs = Blobs()
    packed = blobs.put(gzip.compress(LAYER), OCI_LAYER)
    config = blobs.config([LAYER])
    if kind == "bytes":
        blobs.by_digest[str(packed["digest"])] = gzip.compress(tar([file("f", b"2"), folder("d")]))
    elif kind == "damage":
        good = blobs.by_digest[str(packed["digest"])]
        blobs.by_digest[str(packed["digest"])] = good[:40] + b"\0\0\0\0" + good[44:]
    elif kind == "short":
        blobs.by_digest[str(packed["digest"])] = blobs.by_digest[str(packed["digest"])][:-20]
    elif kind == "long":
        blobs.by_digest[str(packed["digest"])] += b"\0" * 1000
    elif kind == "size":
        packed["size"] = 5
    elif kind == "diff_id":
        config = blobs.config([tar([file("other")])])
    value: Json = {"schemaVersion": 2, "config": config, "layers": [packed]}
    return blobs, blobs.put_json(value, OCI_MANIFEST)


@pytest.mark.parametrize("kind", ["bytes", "damage", "short", "long", "size", "diff_id"])
async def test_a_layer_that_is_not_what_was_promised_leaves_nothing(tmp_path: Path, kind: str) -> None:
    catalog = await open_catalog(tmp_path)
    before = files_of(tmp_path)
    blobs, manifest = lying(kind)
    with pytest.raises(DigestMismatch):
        await catalog.import_path(write_files(tmp_path / "layout", blobs.files([manifest])))
    assert files_of(tmp_path) == before
    assert catalog.list() == []


@pytest.mark.parametrize(
    ("code", "layer", "limits"),
    [
        ("unsafe_path", tar([file("../x")]), ImageLimits()),
        ("layer_corrupt", tar([file("a"), file("a/b")]), ImageLimits()),
        ("layer_corrupt", b"no tar" * 500, ImageLimits()),
        ("image_too_large", tar([file("a", b"x" * 100_000)]), ImageLimits(layer_bytes_max=50_000)),
        ("image_too_large", tar([file("a", b"x" * 100_000)]), ImageLimits(image_bytes_max=50_000)),
        ("image_too_large", LAYER + b"\0" * 100_000, ImageLimits(layer_bytes_max=50_000)),
        ("image_too_large", LAYER, ImageLimits(entry_count_max=1)),
        ("image_too_large", LAYER, ImageLimits(layer_count_max=0)),
    ],
)
async def test_a_refused_image_leaves_nothing(
    tmp_path: Path, code: str, layer: bytes, limits: ImageLimits
) -> None:
    catalog = await open_catalog(tmp_path, limits)
    before = files_of(tmp_path)
    path, _ = write_layout(tmp_path / "layout", [layer])
    with pytest.raises(RametError) as caught:
        await catalog.import_path(path)
    assert caught.value.code == code
    assert files_of(tmp_path) == before


async def test_a_failing_conversion_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = await open_catalog(tmp_path)
    before = files_of(tmp_path)
    path, _ = write_layout(tmp_path / "layout", [LAYER])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConversionFailed, match="apt install"):
        await catalog.import_path(path)
    program = tmp_path / "mkfs.erofs"
    program.write_text("#!/bin/sh\necho it broke >&2; exit 3\n")
    program.chmod(0o755)
    with pytest.raises(ConversionFailed, match="code 3: it broke"):
        await catalog.import_path(path)
    assert files_of(tmp_path) == before


async def test_a_cancelled_conversion_ends_its_process_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = await open_catalog(tmp_path)
    before = files_of(tmp_path)
    path, _ = write_layout(tmp_path / "layout", [LAYER])
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    program = tmp_path / "mkfs.erofs"
    program.write_text(f'#!/bin/sh\n[ "$1" = --help ] && exit 0\necho $$ > {fifo}\nexec sleep 1000\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    async def add() -> None:
        await catalog.import_path(path)

    async with anyio.create_task_group() as group:
        group.start_soon(add)
        pid = int(await anyio.to_thread.run_sync(fifo.read_text))
        group.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert files_of(tmp_path) == before


async def test_a_disk_is_compressed_where_mkfs_can(tmp_path: Path) -> None:
    if not (await detect_features()).lz4:
        pytest.skip("this mkfs.erofs has no lz4")
    catalog = await open_catalog(tmp_path)
    path, _ = write_layout(tmp_path / "layout", [tar([file("a", b"repeat " * 200_000)])])
    assert (await catalog.import_path(path)).size_bytes < 200_000


async def test_the_last_name_takes_the_content_with_it(tmp_path: Path) -> None:
    catalog = await open_catalog(tmp_path)
    before = files_of(tmp_path)
    path, digest = write_layout(tmp_path / "layout", [LAYER], "app:1")
    await catalog.import_path(path)
    assert (await catalog.tag(digest, "app:2")).name == "docker.io/library/app:2"
    await catalog.remove("app:1", in_use=lambda _: True)  # Its content stays, so nobody minds.
    assert catalog.resolve(digest).tags == ("docker.io/library/app:2",)
    with pytest.raises(ImageNotFound):
        await catalog.remove("app:1", in_use=never)
    with pytest.raises(ImageInUse) as caught:
        await catalog.remove("app:2", in_use={digest}.__contains__)
    assert caught.value.code == "image_in_use"
    assert catalog.resolve("app:2").rootfs.exists()
    await catalog.remove("app:2", in_use=never)
    assert catalog.list() == []
    assert files_of(tmp_path) == before | {"tags.json"}
    assert (await open_catalog(tmp_path)).list() == []
    assert (await catalog.import_path(path)).digest == digest


async def test_removing_a_digest_removes_all_its_names(tmp_path: Path) -> None:
    catalog = await open_catalog(tmp_path)
    path, digest = write_layout(tmp_path / "layout", [LAYER], "app:1")
    await catalog.import_path(path)
    await catalog.tag("app:1", "app:2")
    await catalog.remove(digest[7:30], in_use=never)
    for ref in ("app:1", "app:2", digest):
        with pytest.raises(ImageNotFound):
            catalog.resolve(ref)


async def test_a_name_cannot_be_a_digest(tmp_path: Path) -> None:
    catalog = await open_catalog(tmp_path)
    path, digest = write_layout(tmp_path / "layout", [LAYER], "app:1")
    await catalog.import_path(path)
    with pytest.raises(InvalidReference):
        await catalog.tag("app:1", f"app@{digest}")


async def test_what_a_crash_left_is_removed_on_open(tmp_path: Path) -> None:
    catalog = await open_catalog(tmp_path)
    path, digest = write_layout(tmp_path / "layout", [LAYER])
    await catalog.import_path(path)
    kept = files_of(tmp_path)
    images = tmp_path / "images"
    write_files(images / "tmp/half/staging/a", {"b": b""})
    (images / "tmp/link").symlink_to(tmp_path / "layout")
    write_files(images / "content" / f"sha256-{'0' * 64}", {"rootfs.erofs": b""})
    tags = json.loads((images / "tags.json").read_text())
    tags["tags"]["docker.io/library/gone:1"] = "sha256:" + "0" * 64
    (images / "tags.json").write_text(json.dumps(tags))
    again = await open_catalog(tmp_path)
    assert files_of(tmp_path) == kept
    assert (tmp_path / "layout/index.json").exists()
    assert [image.digest for image in again.list()] == [digest]
    with pytest.raises(ImageNotFound):
        again.resolve("gone:1")


@pytest.mark.parametrize("content", [b"", b"{}", b'{"schema": 99}', b"[]", b"\xff"])
async def test_a_record_that_cannot_be_read_is_shown_not_skipped(tmp_path: Path, content: bytes) -> None:
    catalog = await open_catalog(tmp_path)
    path, _ = write_layout(tmp_path / "layout", [LAYER])
    image = await catalog.import_path(path)
    record = image.rootfs.with_name("image.json")
    good = record.read_bytes()
    record.write_bytes(content)
    with pytest.raises(CatalogCorrupt, match=r"image\.json"):
        await open_catalog(tmp_path)
    record.write_bytes(good)
    (tmp_path / "images/tags.json").write_bytes(content)
    with pytest.raises(CatalogCorrupt, match="tags"):
        await open_catalog(tmp_path)


async def test_nobody_else_can_enter_where_setuid_files_are_staged(tmp_path: Path) -> None:
    await open_catalog(tmp_path)
    assert stat.S_IMODE((tmp_path / "images/tmp").stat().st_mode) == 0o700


async def test_the_example_makes_an_image_that_can_be_imported(tmp_path: Path) -> None:
    catalog = await open_catalog(tmp_path)
    (tmp_path / "busybox").write_bytes(b"\x7fELF")
    files, links = busybox_files(tmp_path / "busybox")
    files["srv/index.html"] = (0o644, b"hello")
    make_oci_layout(tmp_path / "demo", "demo:1", files, links, {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]})
    image = await catalog.import_path(tmp_path / "demo")
    assert (image.name, image.config.cmd) == ("docker.io/library/demo:1", ("/bin/sh",))
    tree = read_erofs(image.rootfs, tmp_path / "mnt")
    assert tree["/bin/sh"].target == "busybox"
    assert stat.S_IMODE(tree["/bin/busybox"].mode) == 0o755
    assert stat.S_IMODE(tree["/tmp"].mode) == 0o1777
    assert tree["/srv/index.html"].size_bytes == 5


async def test_an_image_is_discarded_with_all_of_its_names_unless_it_is_wanted_by_then(
    tmp_path: Path,
) -> None:
    catalog = await open_catalog(tmp_path)
    place, _ = write_layout(tmp_path / "app", [LAYER])
    used: list[str] = []
    catalog.watch(used.append)
    image = await catalog.import_path(place)
    await catalog.tag("app:1", "second")
    assert used == [image.digest] * 2
    assert not await catalog.discard(image.digest, is_wanted=lambda: True)
    assert catalog.resolve("second").digest == image.digest

    assert await catalog.discard(image.digest, is_wanted=lambda: False)
    assert catalog.list() == []
    for name in ("app:1", "second"):
        with pytest.raises(ImageNotFound):
            catalog.resolve(name)
    assert not await catalog.discard(image.digest, is_wanted=lambda: False)
    assert (await open_catalog(tmp_path)).list() == []
    assert (await catalog.import_path(place)).tags == image.tags


async def test_an_image_that_is_being_named_when_it_would_go_is_used(tmp_path: Path) -> None:
    catalog = await open_catalog(tmp_path)
    place, _ = write_layout(tmp_path / "app", [LAYER])
    image = await catalog.import_path(place)
    used: list[str] = []
    catalog.watch(used.append)
    gone: list[bool] = []

    async def discard() -> None:
        gone.append(await catalog.discard(image.digest, is_wanted=lambda: bool(used)))

    async with anyio.create_task_group() as group:
        group.start_soon(catalog.import_path, place)
        while not catalog._busy:  # Until the import has the image for itself.
            await anyio.lowlevel.checkpoint()
        group.start_soon(discard)
    assert gone == [False]
    assert catalog.list() == [image]
