"""The client against a real server, over the unix socket and over TCP."""

import socket
import threading
from pathlib import Path

import pytest

from ramet.client import ApiError, Client, ConnectionBroken, Endpoint, NotReachable
from ramet.client.endpoint import DEFAULT_HOST
from ramet.core.errors import Invalid
from ramet.wire_api.exec import ExecStart
from ramet.wire_api.instances import CreateInstance
from ramet.wire_api.snapshots import CreateSnapshot
from tests.api.stand_in import Served, token

IMAGE = "docker.io/library/alpine:latest"


@pytest.fixture(params=["unix", "tcp"])
def client(request: pytest.FixtureRequest, served: Served) -> Client:
    if request.param == "unix":
        return Client(Endpoint.parse(served.unix_url))
    return Client(Endpoint.parse(served.url, token()))


def test_an_instance_from_its_making_to_its_end(client: Client) -> None:
    made = client.create(CreateInstance("web", IMAGE, env={"A": "b"}, tags={"team": "a b"}))
    assert client.get("web") == made
    assert [found.name for found in client.list("Running", {"team": "a b"})] == ["web"]
    assert client.list("Stopped") == []
    assert client.fork("web", "kid").parent_id == made.id
    assert client.fork_many("web", 3, "kids").succeeded == 3
    assert client.wait("web", "Running", "1s").timed_out is False
    assert client.stop("web").state == "Stopped"
    client.delete("web")
    assert "web" not in [found.name for found in client.list()]


def test_an_instance_sleeps_wakes_and_is_forked_in_every_state(client: Client) -> None:
    client.create(CreateInstance("web", IMAGE))
    assert client.standby("web").state == "Standby"
    assert client.fork("web", "asleep").state == "Standby"
    assert client.fork("web", "awake", target_state="Running").state == "Running"
    assert client.restore("web").state == "Running"
    many = client.fork_many("web", 2, "kids", target_state="Stopped")
    assert [fork.instance and fork.instance.state for fork in many.forks] == ["Stopped", "Stopped"]
    assert [fork.name for fork in client.fork_as("web", ["b", "a"]).forks] == ["b", "a"]


def test_a_snapshot_from_its_making_to_its_end(client: Client) -> None:
    client.create(CreateInstance("web", IMAGE))
    made = client.create_snapshot("web", CreateSnapshot("Standby", "warm", {"of": "a b"}))
    assert client.get_snapshot("warm") == client.get_snapshot(made.id[:9]) == made
    assert client.snapshots(source="web", kind="Standby", name="warm", tags={"of": "a b"}) == [made]
    assert client.snapshots(kind="Stopped") == []
    assert client.fork_snapshot("warm", "kid").state == "Running"
    assert client.fork_snapshot("warm", "asleep", target_state="Standby").state == "Standby"
    assert client.fork_snapshot_many("warm", 3, "kids", target_state="Stopped").succeeded == 3
    client.stop("web")
    assert client.restore_snapshot("web", "warm", target_state="Standby").state == "Standby"
    assert client.restore_snapshot("web", "warm").state == "Running"
    client.delete_snapshot("warm")
    with pytest.raises(ApiError, match="no snapshot warm"):
        client.get_snapshot("warm")


def test_images(client: Client, served: Served, tmp_path: Path) -> None:
    assert [found.name for found in client.images()] == [IMAGE]
    archive = tmp_path / "app.tar"
    archive.touch()
    assert client.import_image(str(archive)).name == "docker.io/library/app:latest"
    assert client.get_image("docker.io/library/app:latest").status == "ready"
    client.delete_image("docker.io/library/app:latest")
    assert served.catalog.imported == [archive]


def test_logs_of_any_length(client: Client, served: Served) -> None:
    served.fleet.put("web")
    served.fleet.log = [f"{number} " + "x" * 100 for number in range(5000)]
    assert list(client.logs("web", tail=4000)) == served.fleet.log[-4000:]
    assert list(client.logs("web", tail=0)) == []


def test_followed_logs_come_before_their_end(client: Client, served: Served) -> None:
    served.fleet.put("web")
    lines = client.logs("web", follow=True)
    assert [next(lines) for _ in range(100)] == served.fleet.log[-100:]


def test_exec_keeps_streams_apart(client: Client, served: Served) -> None:
    served.fleet.put("web")
    with client.exec("web", ExecStart(("fail", "oops", "3"))) as session:
        assert list(session.output()) == [(1, b"before "), (2, b"oops")]
        assert session.exit_code == 3


def test_exec_carries_much_both_ways(client: Client, served: Served) -> None:
    served.fleet.put("web")
    sent = bytes(range(256)) * 8192
    with client.exec("web", ExecStart(("cat",))) as session:

        def send() -> None:
            session.write(sent)
            session.close_stdin()

        thread = threading.Thread(target=send)
        thread.start()
        received = b"".join(data for _, data in session.output())
        thread.join()
    assert received == sent


def test_refusals_carry_what_the_server_said(client: Client) -> None:
    with pytest.raises(ApiError) as refused:
        client.get("nobody")
    assert (refused.value.status, refused.value.error.code) == (404, "instance_not_found")
    assert refused.value.remedy == "ramet ps -a shows all"
    with pytest.raises(ApiError, match="no instance nobody"):
        list(client.logs("nobody"))
    with pytest.raises(ApiError, match="no instance nobody"):
        client.exec("nobody", ExecStart(("ls",)))


def test_exec_that_cannot_begin_says_why(client: Client, served: Served) -> None:
    served.fleet.put("web")
    with (
        client.exec("web", ExecStart(("ls",), cwd="/nowhere")) as session,
        pytest.raises(ApiError, match="no directory /nowhere"),
    ):
        list(session.output())


def test_without_a_token_tcp_is_closed(served: Served) -> None:
    with pytest.raises(ApiError, match="no token"):
        Client(Endpoint.parse(served.url)).list()


def test_names_are_quoted(client: Client) -> None:
    with pytest.raises(ApiError, match=r"no instance a b\?c#d&e"):
        client.get("a b?c#d&e")


def test_nobody_there_names_the_socket(tmp_path: Path) -> None:
    client = Client(Endpoint(socket_path=str(tmp_path / "api.sock")))
    with pytest.raises(NotReachable, match="ramet serve") as missing:
        client.list()
    assert str(tmp_path) in str(missing.value)
    with pytest.raises(NotReachable):
        client.exec("web", ExecStart(("ls",)))


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[", b"220 mail\r\n\r\n"]
)
def test_a_server_that_is_none_is_told_as_such(tmp_path: Path, answer: bytes) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve_once() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = threading.Thread(target=serve_once)
        thread.start()
        with pytest.raises(ConnectionBroken):
            Client(Endpoint(socket_path=str(path))).list()
        thread.join()


@pytest.mark.parametrize("body", [b"", b"<html>busy</html>", b"[]", b'{"code": 1}'])
def test_an_error_that_is_not_in_our_form_is_still_an_error(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "api.sock"
    head = f"HTTP/1.1 502 Bad Gateway\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_server(str(path), family=socket.AF_UNIX) as listener:

        def serve_once() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(head + body)

        thread = threading.Thread(target=serve_once)
        thread.start()
        with pytest.raises(ApiError, match="502"):
            Client(Endpoint(socket_path=str(path))).list()
        thread.join()


@pytest.mark.parametrize(
    "url", ["", "localhost", "ftp://x", "unix://", "unix://host/path", "http://", "http://h:x"]
)
def test_a_host_that_cannot_be_is_refused(url: str) -> None:
    with pytest.raises(Invalid, match="RAMET_HOST"):
        Endpoint.parse(url)


def test_the_environment_names_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAMET_HOST", raising=False)
    assert str(Endpoint.from_environment()) == DEFAULT_HOST
    monkeypatch.setenv("RAMET_HOST", "http://[::1]/base/")
    monkeypatch.setenv("RAMET_API_KEY", "key")
    endpoint = Endpoint.from_environment()
    assert str(endpoint) == "http://[::1]:4973/base"
    assert endpoint.headers == {"Authorization": "Bearer key"}
    assert "key" not in repr(endpoint).replace("api_key", "")
