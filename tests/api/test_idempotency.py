"""A POST with a key is done once, however often it comes."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import httpx
import pytest
from fastapi import FastAPI, Request
from hypeman import Hypeman
from starlette.responses import JSONResponse

from ramet.api.errors import install
from ramet.api.idempotency import ANSWER_BYTES_MAX, Idempotency, KeptAnswers
from ramet.store.answers import AnswerStore
from tests.api.stand_in import Served, token

IMAGE = "docker.io/library/alpine:latest"
WEB = {"name": "web", "image": IMAGE}


def post(http: httpx.Client, path: str, key: str, **body: Any) -> httpx.Response:
    return http.post(path, json=body, headers={"Idempotency-Key": key})


def test_it_is_answered_again_and_not_done_again(http: httpx.Client, served: Served) -> None:
    first = post(http, "/instances", "again", **WEB)
    again = post(http, "/instances", "again", **WEB)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json() == first.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert len(served.fleet.list()) == 1


def test_without_a_key_it_is_done_again(http: httpx.Client) -> None:
    assert http.post("/instances", json=WEB).status_code == 201
    assert http.post("/instances", json=WEB).json()["code"] == "name_taken"


@pytest.mark.parametrize(
    ("path", "body"), [("/instances", {**WEB, "name": "other"}), ("/instances/web/fork", {"name": "child"})]
)
def test_a_key_stands_for_one_request(http: httpx.Client, path: str, body: dict[str, Any]) -> None:
    post(http, "/instances", "reused", **WEB)
    refused = post(http, path, "reused", **body)
    assert (refused.status_code, refused.json()["code"]) == (409, "idempotency_key_reused")
    assert refused.headers["x-should-retry"] == "false"


def test_what_was_refused_is_tried_anew(http: httpx.Client, served: Served) -> None:
    assert post(http, "/instances", "tried", name="web", image="docker.io/library/none:1").status_code == 404
    served.catalog.put("docker.io/library/none:1")
    assert post(http, "/instances", "tried", name="web", image="docker.io/library/none:1").status_code == 201


def test_keys_of_one_subject_mean_nothing_to_another(http: httpx.Client, served: Served) -> None:
    post(http, "/instances", "mine", **WEB)
    with httpx.Client(base_url=served.url, headers={"Authorization": f"Bearer {token()}"}) as other:
        assert post(other, "/instances", "mine", **WEB).json()["code"] == "name_taken"


@pytest.mark.parametrize("key", ["", "k" * 256, "caf\xe9"])
def test_a_key_has_a_form(http: httpx.Client, key: str) -> None:
    refused = http.post("/instances", json=WEB, headers=[(b"Idempotency-Key", key.encode("latin-1"))])
    assert (refused.status_code, refused.json()["code"]) == (400, "invalid_idempotency_key")


def test_a_body_that_is_too_large_is_refused_with_a_key_too(http: httpx.Client) -> None:
    refused = post(http, "/instances", "large", name="web", image="x" * (2 << 20))
    assert (refused.status_code, refused.json()["code"]) == (413, "request_too_large")


def test_other_methods_do_not_look_at_it(http: httpx.Client) -> None:
    for _ in range(2):
        listed = http.get("/instances", headers={"Idempotency-Key": "get"})
        assert "idempotent-replayed" not in listed.headers


def test_the_official_client_sends_one(served: Served) -> None:
    client = Hypeman(base_url=served.url, api_key=token())
    made = [
        client.instances.create(name="web", image=IMAGE, extra_headers={"Idempotency-Key": "official"})
        for _ in range(2)
    ]
    assert made[0].id == made[1].id


def test_many_at_once_are_done_once(http: httpx.Client, served: Served) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(http, "/instances", "burst", **WEB), range(8)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(served.fleet.list()) == 1


class Slow:
    """An app whose one call waits until it is told how to end."""

    def __init__(self, store: AnswerStore) -> None:
        self.count = 0
        self.begun, self.may_end = anyio.Event(), anyio.Event()
        self.fails = False
        self.large = False
        app = FastAPI()
        install(app)

        @app.post("/slow")
        async def slow(request: Request) -> JSONResponse:
            self.count += 1
            self.begun.set()
            await self.may_end.wait()
            if self.fails:
                raise KeyError("a bug")
            body = "x" * ANSWER_BYTES_MAX if self.large else (await request.body()).decode()
            return JSONResponse(body)

        app.add_middleware(Idempotency, answers=KeptAnswers(store))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://localhost")

    async def ask(self) -> httpx.Response:
        return await self.client.post("/slow", content=b"hello", headers={"Idempotency-Key": "slow"})


@pytest.mark.anyio
async def test_one_that_comes_while_its_like_is_under_way_waits_for_that_answer() -> None:
    app, answers = Slow(AnswerStore()), list[httpx.Response]()

    async def ask() -> None:
        answers.append(await app.ask())

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await app.begun.wait()
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert not answers
        app.may_end.set()
    assert [answer.json() for answer in answers] == ["hello", "hello"]
    assert app.count == 1


@pytest.mark.anyio
async def test_one_that_was_under_way_when_the_daemon_ended_is_not_done_again() -> None:
    store = AnswerStore()
    first = Slow(store)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(first.ask)
            await first.begun.wait()
            scope.cancel()
    second = Slow(store)
    second.may_end.set()
    refused = await second.ask()
    assert (refused.status_code, refused.json()["code"]) == (409, "idempotency_outcome_unknown")
    assert second.count == 0


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["fails", "large"])
async def test_one_whose_answer_cannot_be_given_again_is_not_done_again(kind: str) -> None:
    app = Slow(AnswerStore())
    setattr(app, kind, True)
    app.may_end.set()
    await app.ask()
    assert (await app.ask()).json()["code"] == "idempotency_outcome_unknown"
    assert app.count == 1
