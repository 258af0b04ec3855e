"""A list in pieces tells everything that stays once, whatever is made and deleted between them."""

import re
from collections.abc import Callable, Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.api.paging import CURSOR_HEADER, InvalidCursor, page
from tests.api.stand_in import Served, token
from tests.api.stand_in_images import failed_pull

Thing = tuple[float, str]


def place(thing: Thing) -> Thing:
    return thing


def walk(listed: Callable[[], list[Thing]], limit: int) -> list[Thing]:
    told: list[Thing] = []
    cursor = None
    while True:
        found = page(listed(), place, limit, cursor)
        piece = list(found.items)
        assert len(piece) <= limit
        told += piece
        cursor = found.cursor
        if cursor is None:
            return told


times = st.floats(min_value=0, max_value=2e9, allow_nan=False)
things = st.lists(st.tuples(times, st.text("abc", min_size=1, max_size=4)), unique=True)


@given(things, st.integers(1, 5))
def test_all_are_told_once_oldest_first(found: list[Thing], limit: int) -> None:
    assert walk(lambda: found, limit) == sorted(found)


@given(things, st.integers(1, 5), st.data())
def test_what_is_deleted_on_the_way_hides_nothing_else(
    found: list[Thing], limit: int, data: st.DataObject
) -> None:
    left = list(found)

    def listed() -> list[Thing]:
        now = list(left)
        if left:
            left.remove(data.draw(st.sampled_from(left)))
        return now

    told = walk(listed, limit)
    assert sorted(set(told)) == told
    assert set(left) <= set(told)


def test_without_limit_and_cursor_the_list_is_left_as_it_is() -> None:
    found = page([(2.0, "b"), (1.0, "a")], place, None, None)
    assert (found.items, found.cursor, found.headers) == ([(2.0, "b"), (1.0, "a")], None, {})


@pytest.mark.parametrize(
    "cursor", ["", "nonsense!", "YWJj", "bm8gbnVtYmVy", "bmFuIGE", "/w==", "A" * 1000, "é"]
)
def test_what_no_list_has_given_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidCursor):
        page([(1.0, "a")], place, 1, cursor)


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, headers={"authorization": f"Bearer {token()}"}) as client:
        yield client


def test_instances_come_in_pieces(http: httpx.Client, served: Served) -> None:
    names = [f"web-{number}" for number in range(5)]
    for name in names:
        served.fleet.put(name)
    told, query = [], {"limit": "2"}
    while True:
        answer = http.get("/instances", params=query)
        assert answer.status_code == 200
        told += [found["name"] for found in answer.json()]
        if CURSOR_HEADER not in answer.headers:
            break
        query["cursor"] = answer.headers[CURSOR_HEADER]
    assert sorted(told) == names


def test_snapshots_come_in_pieces(http: httpx.Client, served: Served) -> None:
    served.fleet.put("web")
    for _ in range(3):
        assert http.post("/instances/web/snapshots", json={"kind": "Standby"}).status_code == 201
    first = http.get("/snapshots", params={"limit": "2"})
    rest = http.get("/snapshots", params={"limit": "2", "cursor": first.headers[CURSOR_HEADER]})
    assert (len(first.json()), len(rest.json()), CURSOR_HEADER in rest.headers) == (2, 1, False)
    assert len({found["id"] for found in (*first.json(), *rest.json())}) == 3


def test_images_come_in_pieces_by_all_of_their_names(http: httpx.Client, served: Served) -> None:
    names = [f"docker.io/{'deep/' * 40}app-{number}:{'t' * 128}" for number in range(5)]
    for name in names:
        served.catalog.put(name)
    told, query = [], {"limit": "2"}
    while True:
        answer = http.get("/images", params=query)
        assert answer.status_code == 200
        told.append([found["name"] for found in answer.json()])
        if CURSOR_HEADER not in answer.headers:
            break
        query["cursor"] = answer.headers[CURSOR_HEADER]
    assert told[:-1] == [names[:2], names[2:4]]
    assert told[-1][0] == names[4]


def test_a_pull_that_failed_is_told_beside_the_image_of_its_name(http: httpx.Client, served: Served) -> None:
    name = "docker.io/library/again:latest"
    found = served.catalog.put(name)
    served.catalog.pulls.failed = [failed_pull(name, found.created_at)]
    told, query = [], {"limit": "1"}
    while True:
        answer = http.get("/images", params=query)
        told += [(each["name"], each["status"]) for each in answer.json()]
        if CURSOR_HEADER not in answer.headers:
            break
        query["cursor"] = answer.headers[CURSOR_HEADER]
    assert [status for each, status in told if each == name] == ["ready", "failed"]
    assert len(set(told)) == len(told)


@pytest.mark.parametrize("path", ["/instances", "/snapshots", "/images"])
@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=0", "bad_request"),
        ("limit=10001", "bad_request"),
        ("limit=many", "bad_request"),
        ("cursor=no", "invalid_cursor"),
    ],
)
def test_a_piece_that_cannot_be_is_refused_with_a_remedy(
    http: httpx.Client, path: str, query: str, code: str
) -> None:
    answer = http.get(f"{path}?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert re.search(r"\w+ \w+", answer.json()["remedy"])
