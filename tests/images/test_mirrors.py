"""A mirror is asked first, learns no secret, and is passed over whatever it does."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ramet.images import Credentials, RegistryConfig
from ramet.images.errors import NotInRegistry
from tests.images.build import file, tar
from tests.images.lying_registry import LyingRegistry, Request, lying_registry
from tests.images.pulling import QUICK, big_blob, fill, pull

pytestmark = [pytest.mark.anyio, pytest.mark.netns]


@pytest.fixture
def mirror(registry: LyingRegistry) -> Iterator[LyingRegistry]:
    with lying_registry() as found:
        fill(found)
        yield found


def mirrored(registry: LyingRegistry, mirror: LyingRegistry) -> RegistryConfig:
    return replace(QUICK, mirrors={registry.authority: mirror.authority})


async def test_what_a_mirror_has_is_not_asked_of_the_registry(
    tmp_path: Path, registry: LyingRegistry, mirror: LyingRegistry
) -> None:
    image = await pull(tmp_path, f"{registry.authority}/app", mirrored(registry, mirror))
    assert image.tags == (f"{registry.authority}/app:latest",)
    assert registry.seen == []


async def test_a_mirror_is_of_one_registry_only(
    tmp_path: Path, registry: LyingRegistry, mirror: LyingRegistry
) -> None:
    with lying_registry() as other:
        fill(other)
        await pull(tmp_path, f"{other.authority}/app", mirrored(registry, mirror))
        assert other.seen
        assert mirror.seen == []


async def test_a_mirror_does_not_learn_the_registrys_secret(
    tmp_path: Path, registry: LyingRegistry, mirror: LyingRegistry
) -> None:
    fill(registry)

    def wants_login(request: Request) -> bool:
        if "Authorization" in request.headers:
            return False
        request.say(401, WWW_Authenticate='Basic realm="r"')
        return True

    registry.lie = mirror.lie = wants_login
    secret = Credentials("me", "hidden")
    await pull(tmp_path, f"{registry.authority}/app", mirrored(registry, mirror), credentials=secret)
    assert any("authorization" in headers for _, headers in registry.seen)
    assert mirror.seen
    assert all("authorization" not in headers for _, headers in mirror.seen)


def _silent(request: Request) -> bool:
    request.server.registry.over.wait()
    return True


def _busy(request: Request) -> bool:
    request.say(429, Retry_After="3600")
    return True


def _broken(request: Request) -> bool:
    request.say(500)
    return True


def _empty(request: Request) -> bool:
    request.say(404)
    return True


def _wrong_layers(request: Request) -> bool:
    if "/blobs/" in request.path:
        request.say(200, b"\0" * 200)
    return "/blobs/" in request.path


def _half_a_layer(request: Request) -> bool:
    content = request.server.registry.blobs.by_digest.get(request.path.rpartition("/")[2], b"")
    if len(content) < 1 << 20:
        return False
    request.say(200, b"\1" * (2 << 20), length=len(content))
    return True


@pytest.mark.parametrize("lie", [_silent, _busy, _broken, _empty, _wrong_layers, _half_a_layer])
async def test_whatever_a_mirror_does_the_registry_has_the_image(
    tmp_path: Path, registry: LyingRegistry, mirror: LyingRegistry, lie: Callable[[Request], bool]
) -> None:
    fill(registry)
    mirror.lie = lie
    image = await pull(tmp_path, f"{registry.authority}/app", mirrored(registry, mirror))
    assert image.config.cmd == ("/big",)
    assert mirror.seen
    assert registry.seen


async def test_a_mirror_that_is_not_there_is_passed_over(tmp_path: Path, registry: LyingRegistry) -> None:
    fill(registry)
    config = replace(QUICK, mirrors={registry.authority: "127.0.0.1:1"})
    assert (await pull(tmp_path, f"{registry.authority}/app", config)).config.cmd == ("/big",)


async def test_layers_that_a_mirror_lost_come_from_the_registry(
    tmp_path: Path, registry: LyingRegistry, mirror: LyingRegistry
) -> None:
    fill(registry)
    del mirror.blobs.by_digest[big_blob(mirror)]
    await pull(tmp_path, f"{registry.authority}/app", mirrored(registry, mirror))
    assert [path.rpartition("/")[2] for path, _ in registry.seen] == [big_blob(registry)]


async def test_an_error_is_the_registrys_and_not_the_mirrors(
    tmp_path: Path, registry: LyingRegistry, mirror: LyingRegistry
) -> None:
    mirror.tags.clear()
    with pytest.raises(NotInRegistry) as caught:
        await pull(tmp_path, f"{registry.authority}/app", mirrored(registry, mirror))
    assert caught.value.fields["registry"] == registry.authority


async def test_a_pinned_image_is_the_same_from_a_mirror_that_lies(
    tmp_path: Path, registry: LyingRegistry, mirror: LyingRegistry
) -> None:
    digest = fill(registry)["digest"]
    other = mirror.blobs.manifest([tar([file("other")])])
    mirror.tags[str(digest)] = str(other["digest"])
    image = await pull(tmp_path, f"{registry.authority}/app@{digest}", mirrored(registry, mirror))
    assert image.digest == digest
