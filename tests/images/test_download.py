"""Layers from registries that cannot do what they should: no ranges, wrong ranges, silence, trickles."""

import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ramet.images.errors import (
    DigestMismatch,
    RegistryAnswerInvalid,
    RegistryStalled,
    RegistryUnreachable,
)
from ramet.images.registry.client import REDIRECT_COUNT_MAX
from tests.images.lying_registry import LyingRegistry, Request
from tests.images.pulling import QUICK, big_blob, fill, pull

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

CUT_BYTES = 2 << 20
ATTEMPTS = QUICK.attempt_count_max
Rest = Callable[[Request, bytes, int], None]


def cutting(registry: LyingRegistry, rest: Rest) -> str:
    """Make the first answer with the big layer end early, and `rest` answer who asks for more."""
    digest = big_blob(registry)
    content = registry.blobs.by_digest[digest]

    def lie(request: Request) -> bool:
        if digest not in request.path:
            return False
        if "Range" in request.headers:
            rest(request, content, CUT_BYTES)
        elif len(registry.asked(digest)) > 1:
            return False
        else:
            request.say(200, content[:CUT_BYTES], length=len(content))
        return True

    registry.lie = lie
    return digest


def _whole(request: Request, content: bytes, offset: int) -> None:
    request.say(200, content)


def _refused(request: Request, content: bytes, offset: int) -> None:
    request.say(416, Content_Range=f"bytes */{len(content)}")


def _unnamed(request: Request, content: bytes, offset: int) -> None:
    request.say(206, content[offset:])


def _other(request: Request, content: bytes, offset: int) -> None:
    request.say(206, content[10:], Content_Range=f"bytes 10-{len(content) - 1}/{len(content)}")


@pytest.mark.parametrize(
    ("rest", "ranges"),
    [
        (_whole, [None, f"bytes={CUT_BYTES}-"]),
        (_refused, [None, f"bytes={CUT_BYTES}-", None]),
        (_unnamed, [None, f"bytes={CUT_BYTES}-", None]),
        (_other, [None, f"bytes={CUT_BYTES}-", None]),
    ],
)
async def test_where_a_part_cannot_be_had_the_whole_is_taken(
    tmp_path: Path, registry: LyingRegistry, rest: Rest, ranges: list[str | None]
) -> None:
    fill(registry)
    digest = cutting(registry, rest)
    await pull(tmp_path, f"{registry.authority}/app")
    assert [headers.get("range") for headers in registry.asked(digest)] == ranges


def _wrong(request: Request, content: bytes, offset: int) -> None:
    span = f"bytes {offset}-{len(content) - 1}/{len(content)}"
    request.say(206, b"\0" * (len(content) - offset), Content_Range=span)


def _too_long(request: Request, content: bytes, offset: int) -> None:
    span = f"bytes {offset}-{len(content) - 1}/{len(content)}"
    request.say(206, content[offset:] + b"more", Content_Range=span)


@pytest.mark.parametrize("rest", [_wrong, _too_long])
async def test_a_wrong_rest_is_refused_and_does_not_spoil_the_next_try(
    tmp_path: Path, registry: LyingRegistry, rest: Rest
) -> None:
    fill(registry)
    cutting(registry, rest)
    with pytest.raises(DigestMismatch):
        await pull(tmp_path, f"{registry.authority}/app")
    registry.lie = None
    assert (await pull(tmp_path, f"{registry.authority}/app")).config.cmd == ("/big",)


@pytest.mark.parametrize("status", [206, 416])
@pytest.mark.parametrize("part", ["/manifests/", "/blobs/"])
async def test_a_part_nobody_asked_for_is_refused(
    tmp_path: Path, registry: LyingRegistry, part: str, status: int
) -> None:
    fill(registry)

    def lie(request: Request) -> bool:
        if part in request.path:
            request.say(status, b"x")
        return part in request.path

    registry.lie = lie
    with pytest.raises(RegistryAnswerInvalid):
        await pull(tmp_path, f"{registry.authority}/app")


async def test_a_registry_without_ranges_that_always_cuts_is_given_up(
    tmp_path: Path, registry: LyingRegistry
) -> None:
    fill(registry)
    digest = big_blob(registry)
    content = registry.blobs.by_digest[digest]

    def cut(request: Request) -> bool:
        if digest in request.path:
            request.say(200, content[:CUT_BYTES], length=len(content))
        return digest in request.path

    registry.lie = cut
    with pytest.raises(RegistryUnreachable):
        await pull(tmp_path, f"{registry.authority}/app")
    assert len(registry.asked(digest)) <= 2 * ATTEMPTS


async def test_a_layer_cut_after_each_megabyte_is_followed_to_its_end(
    tmp_path: Path, registry: LyingRegistry
) -> None:
    fill(registry)
    digest = big_blob(registry)
    content = registry.blobs.by_digest[digest]

    def cut(request: Request) -> bool:
        if digest not in request.path:
            return False
        offset = int(request.headers.get("Range", "bytes=0-")[6:-1])
        span = f"bytes {offset}-{len(content) - 1}/{len(content)}"
        piece = content[offset : offset + (len(content) // (3 * ATTEMPTS))]
        headers = {"Content_Range": span} if offset else {}
        request.say(206 if offset else 200, piece, length=len(content) - offset, **headers)
        return True

    registry.lie = cut
    await pull(tmp_path, f"{registry.authority}/app")
    assert len(registry.asked(digest)) > 2 * ATTEMPTS


@pytest.mark.parametrize("piece_bytes", [0, 1])
async def test_a_layer_that_stalls_is_given_up_and_what_came_is_kept(
    tmp_path: Path, registry: LyingRegistry, piece_bytes: int
) -> None:
    fill(registry)
    digest = big_blob(registry)
    content = registry.blobs.by_digest[digest]

    def stall(request: Request) -> bool:
        if digest not in request.path:
            return False
        offset = int(request.headers.get("Range", "bytes=0-")[6:-1])
        request.send_response(206 if offset else 200)
        request.send_header("Content-Length", str(len(content) - offset))
        if offset:
            request.send_header("Content-Range", f"bytes {offset}-{len(content) - 1}/{len(content)}")
        request.end_headers()
        until = max(offset, CUT_BYTES)
        request.wfile.write(content[offset:until])
        while piece_bytes and not request.server.registry.over.wait(0.05):
            request.wfile.write(content[until : until + piece_bytes])
            until += piece_bytes
        request.server.registry.over.wait()
        return True

    registry.lie = stall
    with pytest.raises(RegistryStalled):
        await pull(tmp_path, f"{registry.authority}/app")
    assert len(registry.asked(digest)) <= 2 * ATTEMPTS
    registry.lie = None
    await pull(tmp_path, f"{registry.authority}/app")
    assert int(registry.asked(digest)[-1]["range"][6:-1]) >= CUT_BYTES


async def test_a_host_that_swallows_everything_is_given_up(tmp_path: Path, registry: LyingRegistry) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        try:
            for other in waiting:
                other.setblocking(False)
                other.connect_ex(("127.0.0.1", port))  # Nobody accepts: a fuller queue swallows the next.
            config = replace(QUICK, connect_timeout_s=0.2)
            with pytest.raises((RegistryUnreachable, RegistryStalled)) as caught:
                await pull(tmp_path, f"127.0.0.1:{port}/app", config)
            assert f"127.0.0.1:{port}" in caught.value.message
        finally:
            for other in waiting:
                other.close()


async def test_a_host_where_nobody_listens_is_told(tmp_path: Path, registry: LyingRegistry) -> None:
    with pytest.raises(RegistryUnreachable) as caught:
        await pull(tmp_path, "127.0.0.1:1/app")
    assert "127.0.0.1:1" in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    "location",
    [
        "",
        "ftp://127.0.0.1/x",
        "http://192.0.2.1/x",
        "http://127.0.0.1:99999/x",
        "file:///etc/passwd",
    ],
)
async def test_a_redirect_to_nowhere_safe_is_not_followed(
    tmp_path: Path, registry: LyingRegistry, location: str
) -> None:
    fill(registry)

    def elsewhere(request: Request) -> bool:
        request.say(307, Location=location)
        return True

    registry.lie = elsewhere
    with pytest.raises(RegistryAnswerInvalid):
        await pull(tmp_path, f"{registry.authority}/app")
    assert len(registry.seen) == 1


async def test_redirects_without_end_are_not_followed(tmp_path: Path, registry: LyingRegistry) -> None:
    fill(registry)

    def around(request: Request) -> bool:
        request.say(307, Location=request.path)
        return True

    registry.lie = around
    with pytest.raises(RegistryAnswerInvalid):
        await pull(tmp_path, f"{registry.authority}/app")
    assert len(registry.seen) == REDIRECT_COUNT_MAX + 1
