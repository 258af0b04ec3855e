"""The right manifest is found in every kind of folder and archive, and nothing is believed unverified."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ramet.core.errors import Invalid
from ramet.images.convert import open_source
from ramet.images.documents import LINUX_AMD64, OCI_LAYER, OCI_MANIFEST, Platform, parse_manifest
from ramet.images.errors import (
    AmbiguousImage,
    BlobMissing,
    DigestMismatch,
    ImageSourceNotFound,
    ImageTooLarge,
    InvalidManifest,
    NoMatchingPlatform,
    NotAnImage,
    UnsupportedMediaType,
)
from ramet.images.limits import ImageLimits
from ramet.images.reference import parse_reference
from ramet.images.source import Selection, select
from tests.images.build import (
    Blobs,
    Json,
    archive_of,
    docker_save,
    file,
    named,
    tar,
    write_files,
    write_layout,
    zstd,
)

LAYER = tar([file("f", b"1")])
OTHER = tar([file("f", b"2")])


def find(
    path: Path, name: str | None = None, platform: Platform = LINUX_AMD64, limits: ImageLimits | None = None
) -> Selection:
    scratch = path.parent / f"scratch-{path.name}"
    scratch.mkdir(exist_ok=True)
    limits = limits or ImageLimits()
    source = open_source(path, scratch, limits, lambda: None)
    return select(source, parse_reference(name) if name else None, platform, limits)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_layout_gives_its_manifest_config_and_name(tmp_path: Path) -> None:
    config: Json = {
        "Entrypoint": ["/init"],
        "Cmd": ["-v"],
        "Env": ["A=1", "B=x=y"],
        "WorkingDir": "/srv",
        "User": "app:staff",
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
        "Labels": {"a": "b"},
        "StopSignal": "SIGINT",
        "Volumes": {"/data": {}},
    }
    path, digest = write_layout(tmp_path / "layout", [LAYER], "team/app:2", config)
    found = find(path)
    assert (found.digest, found.names) == (digest, ("docker.io/team/app:2",))
    run = found.document.config
    assert run.command == ("/init", "-v")
    assert (run.env, run.working_dir, run.user) == (("A=1", "B=x=y"), "/srv", "app:staff")
    assert (run.exposed_ports, run.volumes) == (("53/udp", "80/tcp"), ("/data",))
    assert (dict(run.labels), run.stop_signal, run.platform) == ({"a": "b"}, "SIGINT", LINUX_AMD64)


def test_an_empty_config_has_defaults_and_a_shell_string_is_an_argv(tmp_path: Path) -> None:
    path, _ = write_layout(tmp_path / "layout", [], "app", {"Cmd": None, "Entrypoint": "run me"})
    run = find(path).document.config
    assert (run.entrypoint, run.cmd, run.env) == (("/bin/sh", "-c", "run me"), (), ())
    assert (run.working_dir, run.user) == ("/", "")


@pytest.mark.parametrize("pack", [lambda plain: plain, gzip.compress, zstd.compress])
def test_a_layout_in_an_archive_is_the_same_image(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    blobs = Blobs()
    manifest = blobs.manifest([LAYER], annotations=named("app:1"))
    found = find(write(tmp_path / "app.tar", pack(archive_of(blobs.files([manifest])))))
    assert (found.digest, found.names) == (manifest["digest"], ("docker.io/library/app:1",))


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        (named("app"), ("docker.io/library/app:latest",)),
        (named("localhost/app:3"), ("localhost/app:3",)),
        (named("latest"), ("docker.io/library/thing:latest",)),
        (named("1.2"), ("docker.io/library/thing:1.2",)),
        (named("v3"), ("docker.io/library/thing:v3",)),
        ({"io.containerd.image.name": "r.example/a:7", **named("7")}, ("r.example/a:7",)),
        (named("-no name-"), ()),
        ({}, ()),
    ],
)
def test_annotations_name_an_image(tmp_path: Path, annotations: Json, expected: tuple[str, ...]) -> None:
    blobs = Blobs()
    manifest = blobs.manifest([LAYER], annotations=annotations)
    assert find(write_files(tmp_path / "thing", blobs.files([manifest]))).names == expected


def test_the_platform_is_chosen_from_nested_indexes(tmp_path: Path) -> None:
    blobs = Blobs()
    arm = blobs.manifest([OTHER], "arm64", platform={"os": "linux", "architecture": "arm64", "variant": "v8"})
    amd = blobs.manifest([LAYER], "amd64", platform={"os": "linux", "architecture": "amd64"})
    proof = blobs.put(b"{}", OCI_MANIFEST, platform={"os": "unknown", "architecture": "unknown"})
    inner = blobs.index([proof, arm, amd])
    path = write_files(tmp_path / "layout", blobs.files([blobs.index([inner], annotations=named("app"))]))
    assert find(path).digest == amd["digest"]
    assert find(path, platform=Platform("linux", "arm64")).digest == arm["digest"]
    assert find(path, f"x@{amd['digest']}").digest == amd["digest"]
    assert find(path, f"x@{inner['digest']}").digest == amd["digest"]
    with pytest.raises(NoMatchingPlatform) as caught:
        find(path, platform=Platform("linux", "riscv64"))
    assert caught.value.code == "no_matching_platform"
    assert caught.value.fields["found"] == ["linux/amd64", "linux/arm64/v8"]


def test_a_manifest_without_a_platform_is_judged_by_its_config(tmp_path: Path) -> None:
    blobs = Blobs()
    arm, amd = blobs.manifest([OTHER], "arm64"), blobs.manifest([LAYER])
    path = write_files(tmp_path / "layout", blobs.files([arm, amd]))
    assert find(path).digest == amd["digest"]


def test_a_platform_its_config_denies_does_not_count(tmp_path: Path) -> None:
    blobs = Blobs()
    liar = blobs.manifest([LAYER], "arm64", platform={"os": "linux", "architecture": "amd64"})
    with pytest.raises(NoMatchingPlatform):
        find(write_files(tmp_path / "layout", blobs.files([liar])))


def test_one_of_several_images_is_chosen_by_name(tmp_path: Path) -> None:
    blobs = Blobs()
    one = blobs.manifest([LAYER], annotations=named("app:1"))
    two = blobs.manifest([OTHER], annotations=named("app:2"))
    path = write_files(tmp_path / "layout", blobs.files([one, two]))
    assert find(path, "app:2").digest == two["digest"]
    with pytest.raises(AmbiguousImage) as caught:
        find(path, "app:3")
    assert caught.value.fields["names"] == ["docker.io/library/app:1", "docker.io/library/app:2"]


def test_an_archive_of_old_docker_gets_a_manifest_that_stays_the_same(tmp_path: Path) -> None:
    first = find(write(tmp_path / "a.tar", docker_save([LAYER, OTHER], ["app:1", "r.example/app:2"])))
    again = find(write(tmp_path / "b.tar.gz", gzip.compress(docker_save([LAYER, OTHER], None))))
    assert first.digest == again.digest
    assert first.names == ("docker.io/library/app:1", "r.example/app:2")
    assert again.names == ()
    assert find(write(tmp_path / "c.tar", docker_save([LAYER], None))).digest != first.digest


def test_an_archive_of_new_docker_is_read_as_a_layout_with_dockers_names(tmp_path: Path) -> None:
    blobs = Blobs()
    manifest = blobs.manifest([LAYER])
    files = blobs.files([manifest])
    files["manifest.json"] = json.dumps([{"Config": "x", "RepoTags": ["app:9"], "Layers": []}]).encode()
    found = find(write(tmp_path / "a.tar", archive_of(files)))
    assert (found.digest, found.names) == (manifest["digest"], ("docker.io/library/app:9",))


def test_links_between_layers_of_an_old_archive_stay_inside_it(tmp_path: Path) -> None:
    links = {"layer1/layer.tar": "../layer0/layer.tar"}
    found = find(write(tmp_path / "a.tar", docker_save([LAYER, LAYER], ["app"], links=links)))
    assert len(found.manifest.layers) == 2
    for number, target in enumerate(["/etc/passwd", "../../../../etc/passwd", "../layer1/layer.tar"]):
        path = write(
            tmp_path / f"bad{number}.tar",
            docker_save([LAYER, LAYER], ["app"], links={"layer1/layer.tar": target}),
        )
        with pytest.raises(BlobMissing):
            find(path)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    write_files(tmp_path / "no-index", {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'})
    write(tmp_path / "noise", os.urandom(4000))
    write(tmp_path / "nothing", b"")
    write(tmp_path / "tar", tar([file("a")]))
    for name in ("empty", "pipe", "no-index", "noise", "nothing", "tar"):
        with pytest.raises(NotAnImage):
            find(tmp_path / name)
    with pytest.raises(ImageSourceNotFound):
        find(tmp_path / "absent")


def test_a_pipe_in_place_of_a_blob_does_not_hang_us(tmp_path: Path) -> None:
    path, digest = write_layout(tmp_path / "layout", [LAYER])
    blob = path / "blobs" / digest.replace(":", "/")
    blob.unlink()
    os.mkfifo(blob)
    with pytest.raises(NotAnImage):
        find(path)


@pytest.mark.parametrize("what", ["manifest", "config"])
@pytest.mark.parametrize(
    "damage", [lambda old: old + b" ", lambda old: old[:-1], lambda old: b" " * len(old)]
)
def test_a_document_with_another_digest_is_refused(
    tmp_path: Path, what: str, damage: Callable[[bytes], bytes]
) -> None:
    path, digest = write_layout(tmp_path / "layout", [LAYER])
    blob = path / "blobs" / digest.replace(":", "/")
    if what == "config":
        blob = path / "blobs" / json.loads(blob.read_bytes())["config"]["digest"].replace(":", "/")
    blob.write_bytes(damage(blob.read_bytes()))
    with pytest.raises(DigestMismatch) as caught:
        find(path)
    assert caught.value.code == "digest_mismatch"


def test_a_pinned_digest_must_be_the_images(tmp_path: Path) -> None:
    path, _ = write_layout(tmp_path / "layout", [LAYER])
    with pytest.raises(DigestMismatch):
        find(path, "app@sha256:" + "0" * 64)


def test_a_missing_blob_is_told_by_its_digest(tmp_path: Path) -> None:
    path, digest = write_layout(tmp_path / "layout", [LAYER])
    (path / "blobs" / digest.replace(":", "/")).unlink()
    with pytest.raises(BlobMissing) as caught:
        find(path)
    assert digest in caught.value.message


def test_a_document_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    path, _ = write_layout(tmp_path / "layout", [LAYER], config={"Labels": {"a": "x" * 5000}})
    with pytest.raises(ImageTooLarge):
        find(path, limits=ImageLimits(document_bytes_max=4000))


def change(value: Json, **more: object) -> bytes:
    return json.dumps({**value, **more}).encode()


def test_manifests_that_contradict_the_specification_are_refused() -> None:
    blobs = Blobs()
    good: Json = json.loads(blobs.by_digest[str(blobs.manifest([LAYER])["digest"])])
    parse_manifest(change(good))
    layer: Json = {"mediaType": OCI_LAYER, "digest": "sha256:" + "0" * 64, "size": 1}
    cases: list[tuple[bytes, type[Invalid]]] = [
        (b"", InvalidManifest),
        (b"[" * 100_000, InvalidManifest),
        (b"[]", InvalidManifest),
        (b"\xff", InvalidManifest),
        (change(good, schemaVersion=1), UnsupportedMediaType),
        (change(good, manifests=[]), InvalidManifest),
        (change(good, config=None), InvalidManifest),
        (change(good, layers={}), InvalidManifest),
        (change(good, layers=[{**layer, "digest": "sha256:../../etc/passwd"}]), InvalidManifest),
        (change(good, layers=[{**layer, "size": -1}]), InvalidManifest),
        (change(good, layers=[{**layer, "size": True}]), InvalidManifest),
        (change(good, layers=[{**layer, "mediaType": OCI_LAYER + "+encrypted"}]), UnsupportedMediaType),
        (change(good, config={**layer, "mediaType": "application/vnd.x.chart+json"}), UnsupportedMediaType),
    ]
    for content, error in cases:
        with pytest.raises(error):
            parse_manifest(content)


def test_an_index_of_other_things_than_images_is_refused(tmp_path: Path) -> None:
    blobs = Blobs()
    chart = blobs.put(b"{}", "application/vnd.x.chart+json")
    with pytest.raises(UnsupportedMediaType) as caught:
        find(write_files(tmp_path / "layout", blobs.files([chart])))
    assert caught.value.code == "unsupported_media_type"


def test_indexes_nested_without_end_are_refused(tmp_path: Path) -> None:
    blobs = Blobs()
    inner = blobs.manifest([LAYER])
    for _ in range(8):
        inner = blobs.index([inner])
    with pytest.raises(InvalidManifest):
        find(write_files(tmp_path / "layout", blobs.files([inner])))


def test_manifest_and_config_must_agree_on_the_layers(tmp_path: Path) -> None:
    blobs = Blobs()
    value: Json = {
        "schemaVersion": 2,
        "config": blobs.config([LAYER, OTHER]),
        "layers": [blobs.put(LAYER, OCI_LAYER)],
    }
    path = write_files(tmp_path / "layout", blobs.files([blobs.put_json(value, OCI_MANIFEST)]))
    with pytest.raises(InvalidManifest):
        find(path)


def test_an_unknown_layout_version_is_refused(tmp_path: Path) -> None:
    path, _ = write_layout(tmp_path / "layout", [LAYER])
    (path / "oci-layout").write_text('{"imageLayoutVersion": "2.0.0"}')
    with pytest.raises(UnsupportedMediaType):
        find(path)
