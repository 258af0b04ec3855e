"""Each request has a name: its client's or a new one, in the answer and in the error."""

import httpx
import pytest

from tests.api.stand_in import Served


def test_an_error_names_its_request(http: httpx.Client) -> None:
    first, second = (http.get("/instances/none") for _ in range(2))
    assert first.json()["request_id"] == first.headers["x-request-id"]
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


def test_a_success_has_a_name_too(http: httpx.Client) -> None:
    assert http.get("/health").headers["x-request-id"]


def test_a_clients_name_is_kept(http: httpx.Client) -> None:
    answer = http.get("/instances/none", headers={"X-Request-Id": "trace-7.a:b"})
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "trace-7.a:b"


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "a\u00e9"])
def test_what_is_no_name_is_not_repeated(http: httpx.Client, name: str) -> None:
    answer = http.get("/health", headers=[(b"X-Request-Id", name.encode("latin-1"))])
    assert answer.headers["x-request-id"] != name


def test_a_refused_token_has_one(served: Served) -> None:
    refused = httpx.get(f"{served.url}/instances")
    assert refused.status_code == 401
    assert refused.json()["request_id"] == refused.headers["x-request-id"]


def test_a_bug_has_one(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("planted")

    monkeypatch.setattr("tests.api.stand_in.StandInFleet.find", fail)
    failed = http.get("/instances")
    assert failed.status_code == 500
    assert failed.json()["request_id"] == failed.headers["x-request-id"]
