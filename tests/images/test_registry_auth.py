"""How we log in to registries: what a token server is asked, when again, and who never learns a secret."""

import base64
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from ramet.core.ids import mint_id
from ramet.images import Credentials
from ramet.images.errors import (
    RegistryAnswerInvalid,
    RegistryDenied,
    RegistryStalled,
    RegistryUnreachable,
)
from ramet.images.registry.auth import TOKEN_BYTES_MAX
from ramet.images.registry.challenge import HEADER_LENGTH_MAX, Challenge, parse_challenges
from tests.images.build import file, tar
from tests.images.lying_registry import LyingRegistry, Request, incompressible
from tests.images.pulling import LAYER_BYTES, QUICK, big_blob, fill, pull

netns = pytest.mark.netns
pytestmark = pytest.mark.anyio


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@dataclass
class Guard:
    """Lets in who has a token that its token server gave; each is good for `use_count_max` requests.

    Attributes:
        wants: the Authorization with which a token may be asked for; None lets everybody.
        answer: of the token server, in place of a token.
    """

    registry: LyingRegistry
    wants: str | None = None
    use_count_max: int = 1000
    answer: Callable[[Request], None] | None = None
    realm: str = ""
    uses: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.realm = self.realm or f"http://{self.registry.authority}/token"
        self.registry.lie = self

    def __call__(self, request: Request) -> bool:
        if request.path.startswith("/token"):
            self._give(request)
            return True
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token in self.uses and self.uses[token] < self.use_count_max:
            self.uses[token] += 1
            return False
        request.say(401, WWW_Authenticate=f'Bearer realm="{self.realm}",service="shelf"')
        return True

    def _give(self, request: Request) -> None:
        if self.answer is not None:
            self.answer(request)
        elif self.wants not in (None, request.headers.get("Authorization")):
            request.say(401)
        else:
            token = f"token{len(self.uses)}"
            self.uses[token] = 0
            request.say(200, json.dumps({"token": token}).encode())

    def asked(self) -> list[dict[str, list[str]]]:
        """Return what the token server was asked, as fields."""
        seen = [path for path, _ in self.registry.seen if path.startswith("/token")]
        return [parse_qs(urlsplit(path).query) for path in seen]


async def log_in_and_pull(
    tmp_path: Path,
    registry: LyingRegistry,
    credentials: Credentials | None = None,
    config: Path | None = None,
) -> None:
    """Pull "team/app" with a catalog of its own."""
    settings = replace(QUICK, docker_config=config)
    await pull(tmp_path / mint_id(), f"{registry.authority}/team/app", settings, credentials=credentials)


@netns
async def test_without_a_login_a_token_is_asked_for_by_nobody(
    tmp_path: Path, registry: LyingRegistry
) -> None:
    fill(registry)
    guard = Guard(registry)
    await log_in_and_pull(tmp_path, registry)
    assert guard.asked() == [{"service": ["shelf"], "scope": ["repository:team/app:pull"]}]
    assert "authorization" not in registry.asked("/token")[0]


@netns
async def test_a_login_goes_to_the_token_server_and_not_to_the_registry(
    tmp_path: Path, registry: LyingRegistry
) -> None:
    fill(registry)
    guard = Guard(registry, wants=basic("me", "hidden"))
    await log_in_and_pull(tmp_path, registry, Credentials("me", "hidden"))
    assert guard.asked()[0]["account"] == ["me"]
    shown = {headers.get("authorization") for headers in registry.asked("/v2/")}
    assert shown == {None, "Bearer token0"}


@netns
async def test_dockers_login_is_used_where_the_request_has_none(
    tmp_path: Path, registry: LyingRegistry
) -> None:
    fill(registry)
    Guard(registry, wants=basic("me", "hidden"))
    auths = {registry.authority: {"username": "me", "password": "hidden"}}
    (tmp_path / "config.json").write_text(json.dumps({"auths": auths}))
    await log_in_and_pull(tmp_path, registry, config=tmp_path)
    with pytest.raises(RegistryDenied):
        await log_in_and_pull(tmp_path, registry, Credentials("me", "wrong"), tmp_path)


@netns
async def test_a_password_is_sent_itself_where_that_is_wanted(
    tmp_path: Path, registry: LyingRegistry
) -> None:
    fill(registry)

    def wants_password(request: Request) -> bool:
        if request.headers.get("Authorization") == basic("me", "hidden"):
            return False
        request.say(401, WWW_Authenticate='Basic realm="shelf"')
        return True

    registry.lie = wants_password
    await log_in_and_pull(tmp_path, registry, Credentials("me", "hidden"))
    with pytest.raises(RegistryDenied) as caught:
        await log_in_and_pull(tmp_path, registry, Credentials("me", "wrong"))
    assert registry.authority in caught.value.remedy


@netns
async def test_an_identity_token_is_exchanged(tmp_path: Path, registry: LyingRegistry) -> None:
    fill(registry)
    guard = Guard(registry)
    await log_in_and_pull(tmp_path, registry, Credentials(identity_token="identity"))
    assert registry.forms == [
        {
            "grant_type": "refresh_token",
            "refresh_token": "identity",
            "client_id": "ramet",
            "service": "shelf",
            "scope": "repository:team/app:pull",
        }
    ]
    assert guard.asked() == [{}]  # Nothing in the address, which is written to logs.


@netns
async def test_a_registry_token_is_sent_as_it_is_or_refused(tmp_path: Path, registry: LyingRegistry) -> None:
    fill(registry)
    guard = Guard(registry)
    guard.uses["direct"] = 0
    await log_in_and_pull(tmp_path, registry, Credentials(registry_token="direct"))
    with pytest.raises(RegistryDenied):
        await log_in_and_pull(tmp_path, registry, Credentials(registry_token="other"))
    with pytest.raises(RegistryAnswerInvalid):
        await log_in_and_pull(tmp_path, registry, Credentials(registry_token="a\r\nHost: b"))
    assert guard.asked() == []


@netns
async def test_a_token_that_ends_during_a_pull_is_replaced(tmp_path: Path, registry: LyingRegistry) -> None:
    fill(registry)
    guard = Guard(registry, use_count_max=1)
    await log_in_and_pull(tmp_path, registry)
    request_count = 4  # A manifest, a config and two layers.
    assert set(guard.uses.values()) == {1}
    assert len(guard.uses) == len(guard.asked()) == request_count


@netns
async def test_a_token_that_ends_within_a_layer_costs_no_byte(
    tmp_path: Path, registry: LyingRegistry
) -> None:
    layer = tar([file("big", incompressible(LAYER_BYTES))])
    registry.put(registry.blobs.manifest([layer], config={"Cmd": ["/big"]}))
    digest = big_blob(registry)
    content = registry.blobs.by_digest[digest]
    guard = Guard(registry)

    def cut(request: Request) -> bool:
        if guard(request):
            return True
        if digest not in request.path or "Range" in request.headers:
            return False
        guard.uses.update(dict.fromkeys(guard.uses, guard.use_count_max))
        request.say(200, content[: 2 << 20], length=len(content))
        return True

    registry.lie = cut
    await log_in_and_pull(tmp_path, registry)
    rest = f"bytes={2 << 20}-"
    assert [headers.get("range") for headers in registry.asked(digest)] == [None, rest, rest]
    assert len(guard.asked()) == 2


@netns
async def test_a_registry_that_never_likes_its_own_tokens_is_given_up(
    tmp_path: Path, registry: LyingRegistry
) -> None:
    fill(registry)
    guard = Guard(registry, use_count_max=0)
    with pytest.raises(RegistryDenied):
        await log_in_and_pull(tmp_path, registry)
    assert len(guard.asked()) == 2


def _silent(request: Request) -> None:
    request.server.registry.over.wait()


@netns
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda request: request.say(401), RegistryDenied),
        (lambda request: request.say(403), RegistryDenied),
        (lambda request: request.say(404), RegistryUnreachable),
        (lambda request: request.say(307, Location="http://127.0.0.1/"), RegistryUnreachable),
        (lambda request: request.say(200, b"<html>"), RegistryAnswerInvalid),
        (lambda request: request.say(200, b"[" * 100_000), RegistryAnswerInvalid),
        (lambda request: request.say(200, b"[]"), RegistryAnswerInvalid),
        (lambda request: request.say(200, b'{"token": ""}'), RegistryAnswerInvalid),
        (lambda request: request.say(200, b'{"token": "a\\nb: c"}'), RegistryAnswerInvalid),
        (lambda request: request.say(200, b" " * (TOKEN_BYTES_MAX + 1)), RegistryAnswerInvalid),
        (lambda request: request.say(200, b"{", length=100), RegistryUnreachable),
        (_silent, RegistryStalled),
    ],
)
async def test_a_token_server_may_do_all_wrong(
    tmp_path: Path, registry: LyingRegistry, answer: Callable[[Request], None], error: type[Exception]
) -> None:
    fill(registry)
    Guard(registry, answer=answer)
    with pytest.raises(error):
        await log_in_and_pull(tmp_path, registry, Credentials("me", "hidden"))


@netns
@pytest.mark.parametrize(
    "realm",
    [
        "",
        "token",
        "//",
        "ftp://127.0.0.1/token",
        "http://192.0.2.1/token",
        "http://me:hidden@127.0.0.1/token",
        "http://[::1/token",
        "http://127.0.0.1:99999/token",
        "http://127.0.0.1:x/token",
        "file:///etc/passwd",
    ],
)
async def test_a_secret_is_not_sent_to_an_unsafe_token_server(
    tmp_path: Path, registry: LyingRegistry, realm: str
) -> None:
    fill(registry)
    guard = Guard(registry)
    guard.realm = realm
    with pytest.raises(RegistryAnswerInvalid):
        await log_in_and_pull(tmp_path, registry, Credentials("me", "hidden"))
    assert len(registry.seen) == 1


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (
            'Bearer realm="https://a/b",service="c"',
            [Challenge("bearer", {"realm": "https://a/b", "service": "c"})],
        ),
        (
            'BEARER  Realm = "x" , scope="a:b,c:pull"',
            [Challenge("bearer", {"realm": "x", "scope": "a:b,c:pull"})],
        ),
        ("Basic", [Challenge("basic", {})]),
        (
            'Negotiate, Basic realm=x, Bearer realm="y"',
            [
                Challenge("negotiate", {}),
                Challenge("basic", {"realm": "x"}),
                Challenge("bearer", {"realm": "y"}),
            ],
        ),
        ('Bearer realm="a\\"b\\\\c"', [Challenge("bearer", {"realm": 'a"b\\c'})]),
        ('Bearer realm="first",realm="second"', [Challenge("bearer", {"realm": "first"})]),
        ("", []),
        (",,,", []),
        ('"', []),
        ("Bearer " + "x" * HEADER_LENGTH_MAX, []),
    ],
)
def test_a_challenge_is_read_as_the_standard_writes_it(header: str, expected: list[Challenge]) -> None:
    assert list(parse_challenges([header])) == expected
