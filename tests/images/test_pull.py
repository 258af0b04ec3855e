"""Pulls from a registry that lies, and from Debian's real one."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from ramet.core.errors import RametError
from ramet.images import Credentials, ImageLimits, parse_reference, steps
from ramet.images.errors import (
    BlobMissing,
    DigestMismatch,
    InvalidManifest,
    NoMatchingPlatform,
    NotInRegistry,
    RegistryAnswerInvalid,
    RegistryBusy,
    RegistryDenied,
    RegistryStalled,
    StorageFull,
)
from ramet.images.steps import PullStep
from tests.images.build import file, tar
from tests.images.lying_registry import LyingRegistry, Request, lying_registry
from tests.images.pulling import QUICK, big_blob, catalog_in, fill, pull
from tests.images.real_registry import docker_registry, push
from tests.net.namespaces import own_namespace

pytestmark = [pytest.mark.anyio, pytest.mark.netns]


@pytest.fixture(autouse=True)
def own_network() -> Iterator[None]:
    with own_namespace():
        yield


@pytest.fixture
def registry(own_network: None) -> Iterator[LyingRegistry]:
    with lying_registry() as found:
        yield found


async def test_a_pull_shared_by_many_asks_for_each_layer_once(
    tmp_path: Path, registry: LyingRegistry
) -> None:
    manifest = fill(registry)
    index = registry.blobs.index([{**manifest, "platform": {"os": "linux", "architecture": "amd64"}}])
    pin = registry.put(index, "multi")
    async with catalog_in(tmp_path / "images") as catalog:
        name = parse_reference(f"{registry.authority}/team/app:multi")
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(catalog.pulls.fetch, name)
        found = catalog.resolve(str(name))
        assert found.digest == manifest["digest"]
        assert catalog.resolve(f"{registry.authority}/team/app@{pin}").digest == found.digest
        assert catalog.pulls.list() == []
    assert len(registry.asked(big_blob(registry))) == 1
    assert list((tmp_path / "images" / "pulls").iterdir()) == []


async def test_a_layer_cut_off_is_continued_where_it_ended(tmp_path: Path, registry: LyingRegistry) -> None:
    fill(registry)
    digest = big_blob(registry)
    content = registry.blobs.by_digest[digest]

    def cut(request: Request) -> bool:
        if digest not in request.path or "Range" in request.headers:
            return False
        request.say(200, content[: 2 << 20], length=len(content))
        return True

    registry.lie = cut
    async with catalog_in(tmp_path / "images") as catalog:
        await catalog.pulls.fetch(parse_reference(f"{registry.authority}/app"))
    assert [headers.get("range") for headers in registry.asked(digest)] == [None, f"bytes={2 << 20}-"]


async def test_a_pull_cut_by_the_daemons_end_goes_on_with_the_next(
    tmp_path: Path, registry: LyingRegistry
) -> None:
    fill(registry)
    digest = big_blob(registry)
    content = registry.blobs.by_digest[digest]

    def stall(request: Request) -> bool:
        if digest not in request.path:
            return False
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[: 2 << 20])
        registry.over.wait()
        return True

    registry.lie = stall
    patient = replace(QUICK, stall_timeout_s=60.0)
    name = parse_reference(f"{registry.authority}/app")
    async with catalog_in(tmp_path / "images", patient) as catalog:
        await catalog.pulls.start(name)
        with anyio.fail_after(30):
            while catalog.pulls.list()[0].done_bytes < 1 << 20:  # noqa: ASYNC110  # It tells nobody.
                await anyio.sleep(0.01)
    assert len(list((tmp_path / "images" / "pulls").iterdir())) == 1
    registry.lie = None
    async with catalog_in(tmp_path / "images") as catalog:
        with anyio.fail_after(30):
            await catalog.pulls.fetch(name)
        assert catalog.resolve(str(name)).config.cmd == ("/big",)
    assert "range" in registry.asked(digest)[-1]


def _wrong_bytes(request: Request) -> bool:
    if "/blobs/" in request.path:
        request.say(200, b"\0" * 200)
    return "/blobs/" in request.path


def _limited(request: Request) -> bool:
    request.say(429, Retry_After="3600")
    return True


def _silent(request: Request) -> bool:
    request.server.registry.over.wait()
    return True


def _no_json(request: Request) -> bool:
    request.say(200, b"<html>", Content_Type="text/html")
    return True


def _elsewhere(request: Request) -> bool:
    request.say(307, Location="ftp://127.0.0.1/secret")
    return True


def _without_token(request: Request) -> bool:
    if request.path.startswith("/token"):
        request.say(200, b'{"token": 7}')
    else:
        realm = f"http://127.0.0.1:{request.server.registry.port}/token"
        request.say(401, WWW_Authenticate=f'Bearer realm="{realm}",service="s"')
    return True


def _denying(request: Request) -> bool:
    request.say(401, WWW_Authenticate='Basic realm="r"')
    return True


def _endless(request: Request) -> bool:
    if "/manifests/" in request.path:
        request.say(200, b" " * (5 << 20))
    return "/manifests/" in request.path


def _without_blobs(request: Request) -> bool:
    if "/blobs/" in request.path:
        request.say(404)
    return "/blobs/" in request.path


@pytest.mark.parametrize(
    ("lie", "error"),
    [
        (_wrong_bytes, DigestMismatch),
        (_limited, RegistryBusy),
        (_silent, RegistryStalled),
        (_no_json, InvalidManifest),
        (_elsewhere, RegistryAnswerInvalid),
        (_without_token, RegistryAnswerInvalid),
        (_denying, RegistryDenied),
        (_endless, RametError),
        (_without_blobs, BlobMissing),
    ],
)
async def test_a_lie_ends_in_its_own_error_and_leaves_nothing(
    tmp_path: Path, registry: LyingRegistry, lie: object, error: type[RametError]
) -> None:
    fill(registry)
    registry.lie = lie  # type: ignore[assignment]
    async with catalog_in(tmp_path / "images") as catalog:
        with pytest.raises(error):
            await catalog.pulls.fetch(parse_reference(f"{registry.authority}/app"))
        assert catalog.list() == []
    for place in ("content", "tmp", "pulls"):
        assert list((tmp_path / "images" / place).iterdir()) == []


async def test_a_name_that_is_not_there_is_not_found(tmp_path: Path, registry: LyingRegistry) -> None:
    async with catalog_in(tmp_path / "images") as catalog:
        with pytest.raises(NotInRegistry):
            await catalog.pulls.start(parse_reference(f"{registry.authority}/none"))
        assert catalog.pulls.list() == []


async def test_a_secret_stays_with_its_registry(tmp_path: Path, registry: LyingRegistry) -> None:
    fill(registry)
    with lying_registry() as other:
        other.blobs = registry.blobs

        def guard(request: Request) -> bool:
            if "/blobs/" in request.path:
                request.say(307, Location=f"http://{other.authority}{request.path}")
                return True
            if "Authorization" not in request.headers:
                request.say(401, WWW_Authenticate='Basic realm="r"')
                return True
            return False

        registry.lie = guard
        async with catalog_in(tmp_path / "images") as catalog:
            await catalog.pulls.fetch(
                parse_reference(f"{registry.authority}/app"), credentials=Credentials("me", "hidden")
            )
        assert other.seen
        assert any("authorization" in headers for headers in registry.asked("/blobs/"))
        assert all("authorization" not in headers for _, headers in other.seen)


async def test_a_removal_between_content_and_name_leaves_neither(
    tmp_path: Path, registry: LyingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(registry)
    name = parse_reference(f"{registry.authority}/app")
    async with catalog_in(tmp_path / "images") as catalog, anyio.create_task_group() as group:

        async def remove() -> None:
            await catalog.remove(str(name), in_use=lambda _: False)

        def reached(step: PullStep) -> None:
            if step is PullStep.PUBLISHED:
                group.start_soon(remove)

        monkeypatch.setattr(steps, "reached", reached)
        await catalog.pulls.start(name)
        while catalog.pulls.list():  # noqa: ASYNC110  # It tells nobody.
            await anyio.sleep(0.01)
    assert catalog.list() == []
    assert list((tmp_path / "images" / "content").iterdir()) == []


async def test_a_pull_is_in_line_only_if_another_is_before_it(
    tmp_path: Path, registry: LyingRegistry
) -> None:
    fill(registry)
    digest = big_blob(registry)
    registry.put(registry.blobs.manifest([tar([file("other", b"y")])], config={}), "other")

    def hold(request: Request) -> bool:
        if digest not in request.path:
            return False
        registry.over.wait()
        return True

    registry.lie = hold
    one_at_a_time = replace(QUICK, pull_count_max=1, stall_timeout_s=60.0)
    async with catalog_in(tmp_path / "images", one_at_a_time) as catalog:
        first = await catalog.pulls.start(parse_reference(f"{registry.authority}/app"))
        await catalog.pulls.start(parse_reference(f"{registry.authority}/app:other"))
        second = catalog.pulls.find(f"{registry.authority}/app:other")
        assert second is not None
        assert (first.queue_position, second.queue_position) == (None, 1)


async def test_another_platform_is_told_from_notes_on_the_image(
    tmp_path: Path, registry: LyingRegistry
) -> None:
    arm = {**fill(registry), "platform": {"os": "linux", "architecture": "arm64"}}
    notes = {**arm, "platform": {"os": "unknown", "architecture": "unknown"}}
    registry.put(registry.blobs.index([notes, arm]))
    with pytest.raises(NoMatchingPlatform) as caught:
        await pull(tmp_path / "images", f"{registry.authority}/app", platform="linux/s390x")
    assert caught.value.message == "The image is for linux/arm64 and not for linux/s390x"
    assert caught.value.remedy


async def test_a_full_disk_is_told_before_it_is_full(tmp_path: Path, registry: LyingRegistry) -> None:
    fill(registry)
    async with catalog_in(tmp_path / "images", limits=ImageLimits(free_bytes_min=1 << 60)) as catalog:
        with pytest.raises(StorageFull):
            await catalog.pulls.fetch(parse_reference(f"{registry.authority}/app"))
    assert registry.asked(big_blob(registry)) == []


@pytest.mark.skipif(shutil.which("docker-registry") is None, reason="apt-get install docker-registry skopeo")
async def test_debians_own_registry_serves_what_skopeo_put_there(tmp_path: Path) -> None:
    from tests.vm.images import write_image

    write_image(tmp_path / "layout")
    with docker_registry(tmp_path / "registry") as registry:
        name = f"{registry}/team/demo:1"
        push(tmp_path / "layout", name)
        async with catalog_in(tmp_path / "images", replace(QUICK, document_timeout_s=30.0)) as catalog:
            image = await catalog.pulls.fetch(parse_reference(name))
        assert image.rootfs.stat().st_size == image.size_bytes > 1 << 20
