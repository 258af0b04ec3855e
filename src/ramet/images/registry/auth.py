"""How we answer a registry's 401: with a token from the server it names, or with the password itself.

Layers are fetched side by side, so one task asks for a token and the others wait and use it.
"""

import base64
import json
from collections.abc import Sequence
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

import anyio
import httpx

from ramet.images.errors import (
    RegistryAnswerInvalid,
    RegistryDenied,
    RegistryStalled,
    RegistryUnreachable,
)
from ramet.images.limits import MIB
from ramet.images.registry.challenge import Challenge
from ramet.images.registry.config import Credentials, RegistryConfig
from ramet.images.registry.retry import Attempts

CLIENT_ID: Final = "ramet"
TOKEN_BYTES_MAX: Final = MIB  # Of a token server's answer.


class Authorizer:
    """The header `Authorization` for one repository; `header` is empty until the registry wants one."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        config: RegistryConfig,
        authority: str,
        repository: str,
        credentials: Credentials | None,
    ) -> None:
        self.header = ""
        self._http = http
        self._config = config
        self._authority = authority
        self._repository = repository
        self._credentials = credentials or Credentials()
        self._lock = anyio.Lock()
        if self._credentials.registry_token:
            self.header = self._bearer(self._credentials.registry_token)

    async def answer(self, challenges: Sequence[Challenge], used: str) -> bool:
        """Make `header` what `challenges` ask for; return whether it is worth to ask again.

        Args:
            used: the header of the request that was refused.

        Raises:
            RegistryDenied, RegistryBusy, RegistryUnreachable, RegistryStalled, RegistryAnswerInvalid: of
            the token server.
        """
        async with self._lock:
            if self.header != used:
                return True  # Another task has been here meanwhile.
            if self._credentials.registry_token:
                return False
            for challenge in challenges:
                if challenge.scheme == "bearer":
                    self.header = self._bearer(await self._token(challenge))
                    return True
            for challenge in challenges:
                if challenge.scheme == "basic" and self._credentials.username:
                    self.header = _basic(self._credentials)
                    return self.header != used
            return False

    async def _token(self, challenge: Challenge) -> str:
        realm = self._realm(challenge.parameters.get("realm", ""))
        fields = {"scope": challenge.parameters.get("scope") or f"repository:{self._repository}:pull"}
        if challenge.parameters.get("service"):
            fields["service"] = challenge.parameters["service"]
        if self._credentials.identity_token:
            fields |= {
                "grant_type": "refresh_token",
                "refresh_token": self._credentials.identity_token,
                "client_id": CLIENT_ID,
            }
            request = self._http.build_request("POST", realm, data=fields)
        else:
            secret = {}
            if self._credentials.username:
                fields |= {"account": self._credentials.username, "client_id": CLIENT_ID}
                secret = {"authorization": _basic(self._credentials)}
            request = self._http.build_request("GET", realm.copy_merge_params(fields), headers=secret)
        attempts = Attempts(self._config, realm.host, self._authority)
        while True:
            try:
                with anyio.fail_after(self._config.document_timeout_s):
                    response, content = await self._ask(request)
            except (TimeoutError, httpx.ReadTimeout) as error:
                raise RegistryStalled(
                    f"The token server {realm.host} of {self._authority} stalls", registry=self._authority
                ) from error
            except httpx.HTTPError as error:
                if not await attempts.wait_for_another():
                    raise RegistryUnreachable(
                        f"The token server {realm.host} of {self._authority} cannot be reached:"
                        f" {str(error) or type(error).__name__}",
                        registry=self._authority,
                    ) from error
                continue
            if not await attempts.may_pass(response):
                return self._read(response.status_code, content, realm.host)

    async def _ask(self, request: httpx.Request) -> tuple[httpx.Response, bytes]:
        response = await self._http.send(request, stream=True, follow_redirects=False)
        try:
            content = bytearray()
            async for piece in response.aiter_raw():
                content += piece
                if len(content) > TOKEN_BYTES_MAX:
                    raise RegistryAnswerInvalid(
                        f"The token server {request.url.host} sends more than {TOKEN_BYTES_MAX} bytes"
                    )
            return response, bytes(content)
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()

    def _read(self, status: int, content: bytes, host: str) -> str:
        if status in (HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise RegistryDenied(
                f"The token server {host} of {self._authority} does not accept the credentials",
                remedy=f"log in as the daemon's user: docker login {self._authority}",
                registry=self._authority,
            )
        if status != HTTPStatus.OK:
            raise RegistryUnreachable(
                f"The token server {host} of {self._authority} fails with status {status}",
                registry=self._authority,
            )
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise RegistryAnswerInvalid(f"The token server {host} did not answer in JSON") from error
        token = isinstance(answer, dict) and (answer.get("token") or answer.get("access_token"))
        if not isinstance(token, str):
            raise RegistryAnswerInvalid(f"The token server {host} answered without a token")
        return token

    def _realm(self, text: str) -> httpx.URL:
        try:
            realm = httpx.URL(text)
            authority = urlsplit(text).netloc
            urlsplit(text).port  # noqa: B018  # Raises for one that no address has; `httpx.URL` takes it.
        except (httpx.InvalidURL, ValueError) as error:
            raise RegistryAnswerInvalid(f"{self._authority} names a token server without address") from error
        is_plain = (
            realm.scheme == "http"
            and self._config.speaks_http(authority)
            and self._config.speaks_http(self._authority)
        )
        if realm.userinfo or not realm.host or not (realm.scheme == "https" or is_plain):
            raise RegistryAnswerInvalid(
                f"{self._authority} names a token server that is not safe to use: {text[:200]!r}",
                remedy="list it in registries.insecure if it is meant",
            )
        return realm

    def _bearer(self, token: str) -> str:
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise RegistryAnswerInvalid(f"The token for {self._authority} is none", registry=self._authority)
        return f"Bearer {token}"


def _basic(credentials: Credentials) -> str:
    pair = f"{credentials.username}:{credentials.password}".encode()
    return f"Basic {base64.b64encode(pair).decode()}"
