"""A snapshot goes over HTTP as a stream both ways, whole or not at all."""

import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from ramet.api.app import REQUEST_BYTES_MAX
from tests.api.stand_in import Served, serve

WRITE_TIMEOUT_S = 10.0


@pytest.fixture
def served() -> Iterator[Served]:
    with serve() as served:
        served.fleet.put("web")
        yield served


def test_there_and_back_it_is_another_of_the_same_name(http: httpx.Client, served: Served) -> None:
    record = served.snapshots.put("web", name="warm")
    served.snapshots.filling = b"x" * (REQUEST_BYTES_MAX + 1)  # More than any other body may be.
    exported = http.get("/snapshots/warm/export")
    assert (exported.status_code, exported.headers["content-type"]) == (200, "application/x-tar")
    del served.snapshots.records[record.id]
    made = http.post("/snapshots/import", content=exported.content)
    assert made.status_code == 201
    assert made.json()["name"] == "warm"
    assert made.json()["source_instance_id"] == record.source
    assert made.json()["id"] != record.id
    again = http.post("/snapshots/import", content=exported.content)
    assert (again.status_code, again.json()["code"]) == (409, "snapshot_name_taken")
    again = http.post("/snapshots/import", params={"name": "again"}, content=exported.content)
    assert (again.status_code, again.json()["name"]) == (201, "again")


def test_what_cannot_be_is_refused(http: httpx.Client, served: Served) -> None:
    answer = http.get("/snapshots/nobody/export")
    assert (answer.status_code, answer.json()["code"]) == (404, "snapshot_not_found")
    served.snapshots.filling = b"end"
    answer = http.post("/snapshots/import", content=b"no snapshot")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_export")
    assert answer.json()["remedy"]
    answer = http.post("/snapshots/import", params={"name": "../x"}, content=b"")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_name")


def test_a_body_that_breaks_off_makes_none(served: Served) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(served.socket))
        head = b"POST /snapshots/import HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + b"4\r\nhalf\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65536) == b""
    until = time.monotonic() + WRITE_TIMEOUT_S
    while not served.snapshots.cut:  # The server ends the connection before the import.
        assert time.monotonic() < until
        time.sleep(0.01)
    assert served.snapshots.list() == []
