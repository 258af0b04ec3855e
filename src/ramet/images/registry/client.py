"""Requests to registries: retried, redirected, authorised and bounded in one place.

A secret goes to the registry it is for, or to the token server which that registry names, and nowhere
else: what a redirect leads to gets none, nor is its answer asked what secret it would like.
"""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from typing import Final
from urllib.parse import urlsplit

import anyio
import httpx
import structlog

from ramet import __version__
from ramet.core.errors import RametError
from ramet.images.documents import INDEX_TYPES, MANIFEST_TYPES
from ramet.images.errors import (
    ImageTooLarge,
    NotInRegistry,
    RegistryAnswerInvalid,
    RegistryDenied,
    RegistryStalled,
    RegistryUnreachable,
)
from ramet.images.reference import Reference
from ramet.images.registry.auth import Authorizer
from ramet.images.registry.challenge import parse_challenges
from ramet.images.registry.config import Credentials, RegistryConfig, authority_of
from ramet.images.registry.keychain import Keychain
from ramet.images.registry.retry import Attempts, backoff_s, is_passing

CHALLENGE_COUNT_MAX: Final = 2  # A token may have expired since; a third 401 is meant.
CONNECTION_COUNT_MAX: Final = 32
REDIRECT_COUNT_MAX: Final = 5

_log = structlog.get_logger(__name__)
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_ACCEPT: Final = ", ".join(sorted(INDEX_TYPES | MANIFEST_TYPES))
_HEADERS: Final = {"user-agent": f"ramet/{__version__}", "accept-encoding": "identity"}


class BodyCut(Exception):  # Never leaves this package: whoever reads a body asks for the rest of it.
    """The connection broke off, or stalled, in the middle of a body."""


@dataclass(frozen=True, slots=True)
class Document:
    """What a registry answered whole; not verified."""

    content: bytes
    headers: httpx.Headers


class Registries:
    """All registries, over one pool of connections. Close it with `aclose`."""

    def __init__(self, config: RegistryConfig) -> None:
        self.config = config
        self._keychain = Keychain(config.docker_config)
        timeout = httpx.Timeout(config.stall_timeout_s, connect=config.connect_timeout_s, pool=None)
        self._http = httpx.AsyncClient(
            headers=_HEADERS,
            timeout=timeout,
            limits=httpx.Limits(max_connections=CONNECTION_COUNT_MAX),
            verify=ssl.create_default_context(),
            # Proxies as the environment names them; this host is reached without.
            mounts={f"all://{host}": None for host in ("localhost", "127.0.0.1", "[::1]")},
        )
        # One registry's cookies would tell it that two users' pulls are ours.
        self._http.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    async def aclose(self) -> None:
        await self._http.aclose()

    async def open(self, reference: Reference, credentials: Credentials | None) -> "tuple[Repository, ...]":
        """Return where `reference` may be fetched from, to be tried in this order: mirrors, then itself.

        Args:
            credentials: for the reference's own registry; None takes Docker's.

        Raises:
            CredentialsUnreadable: Docker's own store of credentials cannot be read.
        """
        found = []
        mirror = self.config.mirrors.get(reference.registry)
        if mirror is not None:
            found.append(self._repository(mirror, reference, await self._keychain.find(mirror)))
        own = credentials or await self._keychain.find(reference.registry)
        return (*found, self._repository(authority_of(reference.registry), reference, own))

    def _repository(
        self, authority: str, reference: Reference, credentials: Credentials | None
    ) -> "Repository":
        return Repository(self._http, self.config, authority, reference.repository, credentials)


class Repository:
    """One repository of one registry, asked with one set of credentials."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        config: RegistryConfig,
        authority: str,
        name: str,
        credentials: Credentials | None,
    ) -> None:
        self.config = config
        self.authority = authority
        self.name = name
        self._http = http
        self._authorizer = Authorizer(http, config, authority, name, credentials)

    def __str__(self) -> str:
        return f"{self.authority}/{self.name}"

    async def manifest(self, tag_or_digest: str, bytes_max: int) -> Document:
        """Return a manifest or index.

        Raises:
            NotInRegistry, RegistryDenied, RegistryBusy, RegistryUnreachable, RegistryStalled,
            RegistryAnswerInvalid: see there.
            ImageTooLarge: it has more than `bytes_max` bytes.
        """
        return await self._document(f"manifests/{tag_or_digest}", {"accept": _ACCEPT}, bytes_max)

    async def blob(self, digest: str, bytes_max: int) -> Document:
        """Return a small blob; raises as `manifest`."""
        return await self._document(f"blobs/{digest}", {}, bytes_max)

    def log_passed_over(self, error: RametError) -> None:
        """Note that this mirror failed and another repository is asked: a favour its operator misses."""
        _log.warning("mirror_failed", mirror=self.authority, code=error.code, error=str(error))

    @asynccontextmanager
    async def stream(self, digest: str, offset: int) -> AsyncIterator[httpx.Response]:
        """Open a blob from `offset` on; the answer may be 200 (from 0), 206 or 416.

        Raises:
            BodyCut, TimeoutError: while the body was read inside; asking for the rest may help.
            Others as `manifest`.
        """
        headers = {"range": f"bytes={offset}-"} if offset else {}
        response = await self._send(f"blobs/{digest}", headers)
        try:
            yield response
        except httpx.ReadTimeout as error:
            raise TimeoutError from error
        except httpx.HTTPError as error:
            raise BodyCut(str(error) or type(error).__name__) from error
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()

    async def wait_before(self, attempt: int) -> None:
        """Wait as long as is fitting after `attempt` failures in a row."""
        await anyio.sleep(backoff_s(self.config, attempt))

    async def _document(self, path: str, headers: Mapping[str, str], bytes_max: int) -> Document:
        attempts = self._attempts()
        while True:
            response = await self._send(path, headers)
            try:
                if response.status_code != HTTPStatus.OK:
                    raise self._unexpected(response.status_code)
                with anyio.fail_after(self.config.document_timeout_s):
                    return Document(await self._read(response, bytes_max), response.headers)
            except (TimeoutError, httpx.ReadTimeout) as error:
                raise self.stalled() from error
            except httpx.HTTPError as error:
                if not await attempts.wait_for_another():
                    raise self.broken(str(error) or type(error).__name__) from error
            finally:
                with anyio.CancelScope(shield=True):
                    await response.aclose()

    async def _read(self, response: httpx.Response, bytes_max: int) -> bytes:
        content = bytearray()
        async for piece in response.aiter_raw():
            content += piece
            if len(content) > bytes_max:
                raise ImageTooLarge(f"A document of {self} has more than {bytes_max} bytes")
        return bytes(content)

    async def _send(self, path: str, headers: Mapping[str, str]) -> httpx.Response:
        """Return the answer to a GET, its body unread: 200, 206 or 416."""
        attempts = self._attempts()
        challenge_count = 0
        while True:
            try:
                with anyio.fail_after(self.config.document_timeout_s):
                    response, is_own = await self._follow(path, headers)
            except (TimeoutError, httpx.ReadTimeout) as error:
                raise self.stalled() from error
            except httpx.TransportError as error:
                if not await attempts.wait_for_another():
                    raise self.broken(str(error) or type(error).__name__) from error
                continue
            if response.status_code in (200, 206, 416):
                return response
            await response.aclose()
            status = response.status_code
            if status == HTTPStatus.UNAUTHORIZED and is_own and challenge_count < CHALLENGE_COUNT_MAX:
                challenge_count += 1
                used = response.request.headers.get("authorization", "")
                challenges = parse_challenges(response.headers.get_list("www-authenticate"))
                if await self._authorizer.answer(challenges, used):
                    continue
            if not await attempts.may_pass(response):
                raise self._refusal(status, path)

    def _attempts(self) -> Attempts:
        return Attempts(self.config, self.authority, self.authority)

    async def _follow(self, path: str, headers: Mapping[str, str]) -> tuple[httpx.Response, bool]:
        """Return the answer at the end of all redirects, and whether the registry itself gave it."""
        own = httpx.URL(f"{self.config.base_url(self.authority)}/{self.name}/{path}")
        url = own
        for _ in range(REDIRECT_COUNT_MAX + 1):
            is_own = (url.scheme, url.netloc) == (own.scheme, own.netloc)
            authorization = self._authorizer.header if is_own else ""
            secret = {"authorization": authorization} if authorization else {}
            request = self._http.build_request("GET", url, headers={**headers, **secret})
            response = await self._http.send(request, stream=True, follow_redirects=False)
            if response.status_code not in _REDIRECTS:
                return response, is_own
            await response.aclose()
            url = self._target(url, response.headers.get("location", ""))
        raise RegistryAnswerInvalid(f"{self} redirects more than {REDIRECT_COUNT_MAX} times")

    def _target(self, url: httpx.URL, location: str) -> httpx.URL:
        try:
            target = url.join(location)
            authority = urlsplit(str(target)).netloc
            urlsplit(str(target)).port  # noqa: B018  # Raises for one that no address has; `httpx.URL` takes it.
        except (httpx.InvalidURL, ValueError) as error:
            raise RegistryAnswerInvalid(f"{self} redirects to something that is no address") from error
        is_plain = target.scheme == "http" and url.scheme == "http" and self.config.speaks_http(authority)
        if not location or not target.host or not (target.scheme == "https" or is_plain):
            raise RegistryAnswerInvalid(
                f"{self} redirects to {target.scheme}://{target.host}, which is not safe to follow",
                remedy="list the target in registries.insecure if it is meant",
            )
        return target.copy_with(username=None, password=None) if target.userinfo else target

    # What can go wrong

    def _refusal(self, status: int, path: str) -> Exception:
        if status == HTTPStatus.NOT_FOUND:
            what = path.partition("/")[2]
            return NotInRegistry(
                f"{self.authority} has no {self.name} {what}",
                remedy="check the name, the tag and the registry",
                registry=self.authority,
            )
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return denied(self.authority, self.name)
        if is_passing(status):
            return RegistryUnreachable(
                f"{self.authority} fails with status {status}", registry=self.authority
            )
        return self._unexpected(status)

    def _unexpected(self, status: int) -> RegistryAnswerInvalid:
        return RegistryAnswerInvalid(
            f"{self.authority} answered with the unexpected status {status}", registry=self.authority
        )

    def stalled(self) -> RegistryStalled:
        """Return the error for a registry that leaves us waiting."""
        return RegistryStalled(
            f"{self.authority} is connected, but sends nothing or next to nothing",
            remedy="try again; what was downloaded is kept",
            registry=self.authority,
        )

    def broken(self, reason: str) -> RegistryUnreachable:
        """Return the error for a registry to which there is no connection, or none that lasts."""
        return RegistryUnreachable(
            f"{self.authority} cannot be reached: {reason}",
            remedy="check the name of the registry and the network, then try again",
            registry=self.authority,
        )


def denied(authority: str, repository: str) -> RegistryDenied:
    """Return the error for a registry that refuses us."""
    return RegistryDenied(
        f"{authority} does not let us read {repository}, or has no such repository",
        remedy=f"check the name, or log in as the daemon's user: docker login {authority}",
        registry=authority,
    )
