"""Who says "not now" is asked again, be it a registry or a token server, as one rule for both says."""

import email.utils
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ramet.images import parse_reference
from ramet.images.errors import RegistryBusy, RegistryUnreachable
from ramet.images.registry.retry import RETRY_AFTER_S_MAX, retry_after_s
from tests.images.lying_registry import LyingRegistry, Request, lying_registry
from tests.images.pulling import QUICK, big_blob, catalog_in, fill
from tests.net.namespaces import own_namespace

ATTEMPTS = QUICK.attempt_count_max
HOUR_S = 3600

Refusal = tuple[int, dict[str, Any]]


@pytest.fixture
def registry() -> Iterator[LyingRegistry]:
    with own_namespace(), lying_registry() as found:
        fill(found)
        yield found


def refusing(part: str, refusals: Sequence[Refusal]) -> Callable[[Request], bool]:
    """Return a lie: the first requests whose path holds `part` are refused, each in its own way."""
    left = list(refusals)

    def lie(request: Request) -> bool:
        if part not in request.path or not left:
            return False
        status, headers = left.pop(0)
        request.say(status, **headers)
        return True

    return lie


def with_tokens(registry: LyingRegistry, lie: Callable[[Request], bool]) -> Callable[[Request], bool]:
    """Return a lie: the registry wants tokens, and its token server tells `lie` before it gives one."""

    def guard(request: Request) -> bool:
        if request.path.startswith("/token"):
            if not lie(request):
                request.say(200, b'{"token": "open"}')
            return True
        if request.headers.get("Authorization") == "Bearer open":
            return False
        request.say(401, WWW_Authenticate=f'Bearer realm="http://{registry.authority}/token",service="s"')
        return True

    return guard


def date_in(delay_s: float) -> str:
    return email.utils.formatdate(time.time() + delay_s, usegmt=True)


PASSING: list[list[Refusal]] = [
    [(429, {})],
    [(429, {"Retry_After": "0"})],
    [(429, {"Retry_After": date_in(-HOUR_S)})],
    [(429, {"Retry_After": "soon"})],
    [(503, {"Retry_After": "0"})],
    [(429, {}), (503, {}), (500, {})],
    [(status, {}) for status in (408, 502, 504)],
]


@pytest.mark.anyio
@pytest.mark.netns
@pytest.mark.parametrize("refusals", PASSING)
@pytest.mark.parametrize("part", ["/manifests/", "/blobs/", "/token"])
async def test_what_may_pass_is_asked_again(
    tmp_path: Path, registry: LyingRegistry, part: str, refusals: list[Refusal]
) -> None:
    registry.lie = with_tokens(registry, refusing(part, refusals))
    if part != "/token":
        registry.lie = refusing(part, refusals)
    async with catalog_in(tmp_path / "images", replace(QUICK, layer_count_max=1)) as catalog:
        image = await catalog.pulls.fetch(parse_reference(f"{registry.authority}/app"))
    assert image.config.cmd == ("/big",)
    good_count = {"/manifests/": 1, "/blobs/": 3, "/token": 1}[part]
    assert len(registry.asked(part)) == good_count + len(refusals)


@pytest.mark.anyio
@pytest.mark.netns
@pytest.mark.parametrize("part", ["/manifests/", "/blobs/", "/token"])
@pytest.mark.parametrize(
    ("status", "retry_after"),
    [(429, str(HOUR_S)), (429, date_in(HOUR_S + 60)), (503, str(HOUR_S))],
    ids=["429", "429 until a date", "503"],  # Without, the date: another in every process.
)
async def test_who_asks_for_too_much_time_is_not_asked_again(
    tmp_path: Path, registry: LyingRegistry, part: str, status: int, retry_after: str
) -> None:
    registry.lie = refusing(part, [(status, {"Retry_After": retry_after})] * ATTEMPTS)
    if part == "/token":
        registry.lie = with_tokens(registry, registry.lie)
    async with catalog_in(tmp_path / "images") as catalog:
        with pytest.raises(RegistryBusy) as caught:
            await catalog.pulls.fetch(parse_reference(f"{registry.authority}/app"))
    assert len(registry.asked(part)) == 1
    wait_s = caught.value.fields["retry_after_s"]
    assert isinstance(wait_s, float)
    assert HOUR_S / 2 < wait_s < 2 * HOUR_S
    assert caught.value.fields["registry"] == registry.authority
    assert registry.authority in caught.value.remedy


@pytest.mark.anyio
@pytest.mark.netns
@pytest.mark.parametrize("part", ["/manifests/", "/token"])
@pytest.mark.parametrize(("status", "error"), [(429, RegistryBusy), (503, RegistryUnreachable)])
async def test_who_never_has_time_is_given_up(
    tmp_path: Path, registry: LyingRegistry, part: str, status: int, error: type[Exception]
) -> None:
    registry.lie = refusing(part, [(status, {})] * 100)
    if part == "/token":
        registry.lie = with_tokens(registry, registry.lie)
    async with catalog_in(tmp_path / "images") as catalog:
        with pytest.raises(error):
            await catalog.pulls.fetch(parse_reference(f"{registry.authority}/app"))
    assert len(registry.asked(part)) == ATTEMPTS


@pytest.mark.anyio
@pytest.mark.netns
async def test_a_wait_keeps_what_was_downloaded(tmp_path: Path, registry: LyingRegistry) -> None:
    digest = big_blob(registry)
    content = registry.blobs.by_digest[digest]
    refused = refusing(digest, [(429, {"Retry_After": "0"})])

    def cut_then_refuse(request: Request) -> bool:
        if digest not in request.path:
            return False
        if "Range" in request.headers:
            return refused(request)
        request.say(200, content[: 2 << 20], length=len(content))
        return True

    registry.lie = cut_then_refuse
    async with catalog_in(tmp_path / "images") as catalog:
        await catalog.pulls.fetch(parse_reference(f"{registry.authority}/app"))
    rest = f"bytes={2 << 20}-"
    assert [headers.get("range") for headers in registry.asked(digest)] == [None, rest, rest]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, 7.0),
        ("", 7.0),
        ("soon", 7.0),
        ("-5", 7.0),
        ("1.5", 7.0),
        ("٣", 7.0),
        ("12", 12.0),
        (" 12 ", 12.0),
        ("9" * 5000, RETRY_AFTER_S_MAX),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0.0),
        ("Sun, 06 Nov 99999 08:49:37 GMT", 7.0),
        ("Sunday, 99 Nov 1994 99:49:37 GMT", 7.0),
    ],
)
def test_a_wait_is_seconds_or_a_date(header: str | None, expected: float) -> None:
    assert retry_after_s(header, 7.0) == expected


@pytest.mark.parametrize(
    "form", ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"]
)
def test_all_forms_of_a_date_are_in_universal_time(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    try:
        text = time.strftime(form, time.gmtime(time.time() + HOUR_S))
        assert HOUR_S - 600 < retry_after_s(text, 7.0) <= HOUR_S
    finally:
        monkeypatch.undo()
        time.tzset()
