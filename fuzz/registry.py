"""What registries, their token servers and Docker's own files say when images are pulled."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Final

import httpx

from ramet.core.errors import RametError
from ramet.images.registry.auth import Authorizer
from ramet.images.registry.challenge import parse_challenges
from ramet.images.registry.config import Credentials, RegistryConfig
from ramet.images.registry.keychain import Keychain

REGISTRY: Final = "r.example"
_CONFIG: Final = RegistryConfig(attempt_count_max=1)


def registry(data: bytes) -> None:
    """A login is one that can be sent, or a typed error; and no secret goes anywhere in the clear.

    The first byte chooses between Docker's config.json and a registry's header with, behind a zero byte, the
    answer of the token server it names.
    """
    if not data:
        return
    if data[0] % 2:
        asyncio.run(_log_in(_find(data[1:]), 'Bearer realm="https://t.example/token"', b'{"token": "t"}'))
    else:
        header, _, answer = data[1:].partition(b"\0")
        asyncio.run(_log_in(Credentials("user", "password"), header.decode("latin-1"), answer))


def _find(config: bytes) -> Credentials | None:
    with tempfile.TemporaryDirectory(prefix="ramet-fuzz-") as folder:
        (Path(folder) / "config.json").write_bytes(config)
        with suppress(RametError):
            return asyncio.run(Keychain(Path(folder), helper_timeout_s=1).find(REGISTRY))
    return None


async def _log_in(credentials: Credentials | None, header: str, answer: bytes) -> None:
    def serve(request: httpx.Request) -> httpx.Response:
        assert request.url.scheme == "https" or _CONFIG.speaks_http(request.url.netloc.decode())
        return httpx.Response(200, content=pieces())

    async def pieces() -> AsyncIterator[bytes]:
        yield answer

    for scheme in ("", "Basic "):
        async with httpx.AsyncClient(transport=httpx.MockTransport(serve)) as http:
            authorizer = Authorizer(http, _CONFIG, REGISTRY, "a/b", credentials)
            with suppress(RametError):
                await authorizer.answer(parse_challenges([scheme + header]), authorizer.header)
            # What we send ourselves can be sent.
            httpx.Request("GET", f"https://{REGISTRY}/v2/", headers={"authorization": authorizer.header})
            assert authorizer.header.isprintable()
