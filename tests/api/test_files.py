"""Files of a guest over HTTP, and by the official client's copy over WebSocket."""

import io
import json
import os
import socket
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypeman import Hypeman
from hypeman.lib.cp import CopyProtocolError, cp_from_instance, cp_to_instance
from websockets.exceptions import InvalidStatus
from websockets.sync.client import unix_connect
from websockets.sync.connection import Connection

from ramet.api import copying
from ramet.api.auth import scope_of
from ramet.api.files_routes import ArchiveCut
from ramet.core.spec import State
from tests.api.stand_in import Served, token

WRITE_TIMEOUT_S = 30


@pytest.fixture
def guest(served: Served) -> Path:
    """Return the root of a running guest called "web"."""
    served.fleet.put("web")
    return served.fleet.files.root


@pytest.fixture
def http(served: Served) -> Iterator[httpx.Client]:
    transport = httpx.HTTPTransport(uds=str(served.socket))
    with httpx.Client(base_url="http://localhost/instances/web", transport=transport) as http:
        yield http


@pytest.fixture
def client(served: Served) -> Iterator[Hypeman]:
    with Hypeman(base_url=served.url, api_key=token()) as client:
        yield client


def write_tree(root: Path) -> None:
    """Make a folder with one of each kind, and names that are not easy."""
    (root / "tree" / "sub" / "empty").mkdir(parents=True)
    (root / "tree" / "big").write_bytes(bytes(range(256)) * 3000)
    (root / "tree" / "none").touch()
    (root / "tree" / "sub" / "run.sh").write_text("#!/bin/sh\n")
    (root / "tree" / "sub" / "run.sh").chmod(0o750)
    (root / "tree" / "sub" / ("n" * 200)).write_text("a long name")
    (root / "tree" / "sub" / "sn\N{SNOWMAN}w").write_text("unicode")
    (root / "tree" / "link").symlink_to("sub/run.sh")
    os.link(root / "tree" / "big", root / "tree" / "sub" / "zz-big-again")
    for path in (root / "tree" / "big", root / "tree" / "sub"):
        os.utime(path, (1_600_000_000, 1_600_000_000))


def manifest(root: Path) -> dict[str, tuple[Any, ...]]:
    """Return what is below `root`: kind, mode, content, and times of files."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        if path.is_symlink():
            found[str(path.relative_to(root))] = ("link", os.readlink(path))
        elif path.is_dir():
            found[str(path.relative_to(root))] = ("folder", oct(mode))
        else:
            found[str(path.relative_to(root))] = (
                oct(mode),
                int(path.stat().st_mtime),
                path.read_bytes(),
            )
    return found


def tar_of(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))
    return buffer.getvalue()


def test_stat_tells_what_is_there(client: Hypeman, guest: Path) -> None:
    write_tree(guest)
    run = client.instances.stat("web", path="/tree/sub/run.sh")
    assert (run.exists, run.is_file, run.is_dir, run.mode, run.size) == (True, True, False, 0o750, 10)
    link = client.instances.stat("web", path="/tree/link")
    assert (link.is_symlink, link.link_target) == (True, "sub/run.sh")
    assert client.instances.stat("web", path="/tree/link", follow_links=True).is_file
    nothing = client.instances.stat("web", path="/nowhere")
    assert (nothing.exists, nothing.error) == (False, None)


@pytest.mark.parametrize("query", ["", "?path=", "?path=" + "x" * 5000, "?path=/&follow_links=maybe"])
def test_a_path_that_cannot_be_is_refused(http: httpx.Client, guest: Path, query: str) -> None:
    answer = http.get(f"/stat{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


@pytest.mark.parametrize(("method", "path"), [("GET", "stat"), ("GET", "archive"), ("PUT", "archive")])
def test_files_of_what_does_not_run_cannot_be_had(
    http: httpx.Client, served: Served, method: str, path: str
) -> None:
    assert http.request(method, path, params={"path": "/"}).status_code == 404
    served.fleet.put("web", State.STOPPED)
    answer = http.request(method, path, params={"path": "/"})
    assert (answer.status_code, answer.json()["code"]) == (409, "invalid_state")
    assert answer.json()["remedy"] == "ramet start web"


def test_looking_needs_less_than_copying() -> None:
    assert scope_of("http", "GET", "/instances/web/stat") == "instance:read"
    assert scope_of("http", "GET", "/instances/web/archive") == "instance:write"
    assert scope_of("http", "PUT", "/instances/web/archive") == "instance:write"
    assert scope_of("websocket", "", "/instances/web/cp") == "instance:write"


def test_an_archive_of_a_tree_and_back(http: httpx.Client, guest: Path) -> None:
    write_tree(guest)
    answer = http.get("/archive", params={"path": "/tree"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-tar")
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        assert archive.getnames()[0] == "tree"
    (guest / "copy").mkdir()
    assert http.put("/archive", params={"path": "/copy"}, content=answer.content).status_code == 204
    assert manifest(guest / "copy" / "tree") == manifest(guest / "tree")


def test_owners_are_kept_on_request(http: httpx.Client, served: Served, guest: Path) -> None:
    for query, is_kept in (({}, False), ({"keep_owner": "true"}, True)):
        http.put("/archive", params={"path": "/", **query}, content=tar_of("file"))
        assert served.fleet.files.keep_owner is is_kept


@pytest.mark.parametrize(("method", "path"), [("GET", "/nowhere"), ("PUT", "/nowhere")])
def test_an_archive_of_nothing_is_refused_before_it_begins(
    http: httpx.Client, guest: Path, method: str, path: str
) -> None:
    answer = http.request(method, "/archive", params={"path": path}, content=tar_of("file"))
    assert (answer.status_code, answer.json()["code"]) == (404, "path_not_found")


def test_what_is_no_archive_is_refused(http: httpx.Client, guest: Path) -> None:
    answer = http.put("/archive", params={"path": "/"}, content=b"no tar" * 1000)
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_archive")


def test_an_archive_that_breaks_is_never_merely_short(
    http: httpx.Client, served: Served, guest: Path
) -> None:
    (guest / "big").write_bytes(os.urandom(1 << 20))
    served.fleet.files.broken_after_bytes = 300_000
    with pytest.raises(httpx.RemoteProtocolError):
        http.get("/archive", params={"path": "/big"})
    served.fleet.files.broken_after_bytes = 0
    assert http.get("/archive", params={"path": "/big"}).json()["message"] == "the guest went away"


def test_a_body_that_breaks_off_is_no_archive(served: Served, guest: Path) -> None:
    whole = tar_of("first", "second")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(served.socket))
        head = "PUT /instances/web/archive?path=/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head.encode() + b"%x\r\n%s\r\n" % (1536, whole[:1536]))
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(65536) == b""
    until = time.monotonic() + WRITE_TIMEOUT_S
    while not served.fleet.files.refused:  # The server ends the connection before the write.
        assert time.monotonic() < until
        time.sleep(0.01)
    assert isinstance(served.fleet.files.refused[0], ArchiveCut)


def test_a_body_larger_than_any_request_is_passed_on(http: httpx.Client, guest: Path) -> None:
    (guest / "big").write_bytes(os.urandom(3 << 20))
    content = http.get("/archive", params={"path": "/big"}).content
    (guest / "into").mkdir()
    assert http.put("/archive", params={"path": "/into"}, content=content).status_code == 204
    assert (guest / "into" / "big").read_bytes() == (guest / "big").read_bytes()


def test_a_reader_that_leaves_ends_the_reading(http: httpx.Client, served: Served, guest: Path) -> None:
    (guest / "big").write_bytes(os.urandom(4 << 20))
    with http.stream("GET", "/archive", params={"path": "/big"}) as answer:
        next(answer.iter_raw(1000))
    for _ in range(1000):  # Each request is a turn of the server's loop.
        if served.fleet.files.open_count == 0:
            return
        http.get("/stat", params={"path": "/"})
    raise AssertionError("the archive is still being read")


def test_the_official_client_copies_a_tree_in(client: Hypeman, guest: Path, tmp_path: Path) -> None:
    write_tree(tmp_path)
    (tmp_path / "tree" / "link").unlink()  # Its protocol has no links in this direction.
    cp_to_instance(client, "web", tmp_path / "tree", "/made/on/the/way")
    assert {name: found[-1] for name, found in manifest(guest / "made/on/the/way").items()} == {
        name: found[-1] for name, found in manifest(tmp_path / "tree").items()
    }
    assert (guest / "made/on/the/way/sub/run.sh").stat().st_mode & 0o777 == 0o750


def test_the_official_client_copies_a_file_in(
    client: Hypeman, served: Served, guest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "MEMORY_BYTES_MAX", 1000)
    (tmp_path / "file").write_bytes(os.urandom(1_000_000))
    cp_to_instance(client, "web", tmp_path / "file", "/file", mode=0o604, archive=True)
    assert (guest / "file").read_bytes() == (tmp_path / "file").read_bytes()
    assert (guest / "file").stat().st_mode & 0o777 == 0o604
    assert served.fleet.files.keep_owner is True


def test_the_official_client_copies_a_tree_out(client: Hypeman, guest: Path, tmp_path: Path) -> None:
    write_tree(guest)
    cp_from_instance(client, "web", "/tree", tmp_path)
    assert manifest(tmp_path / "tree") == manifest(guest / "tree")


def test_the_official_client_copies_one_file_out(client: Hypeman, guest: Path, tmp_path: Path) -> None:
    write_tree(guest)
    cp_from_instance(client, "web", "/tree/link", tmp_path, follow_symlinks=True)
    assert (tmp_path / "link").read_text() == "#!/bin/sh\n"
    cp_from_instance(client, "web", "/tree/none", tmp_path)
    assert (tmp_path / "none").read_bytes() == b""


def test_the_official_client_is_told_what_went_wrong(
    client: Hypeman, served: Served, guest: Path, tmp_path: Path
) -> None:
    write_tree(guest)
    with pytest.raises(CopyProtocolError, match="at /nowhere: the guest has nothing"):
        cp_from_instance(client, "web", "/nowhere", tmp_path)
    with pytest.raises(CopyProtocolError, match="is a folder in the guest"):
        cp_to_instance(client, "web", guest / "tree" / "big", "/tree")
    with pytest.raises(CopyProtocolError, match="is a file in the guest"):
        cp_to_instance(client, "web", guest / "tree" / "sub", "/tree/big")
    with pytest.raises(CopyProtocolError, match="is no folder in the guest"):
        cp_to_instance(client, "web", guest / "tree" / "big", "/tree/big/below")
    served.fleet.files.broken_after_bytes = 100_000
    with pytest.raises(CopyProtocolError, match="the guest went away"):
        cp_from_instance(client, "web", "/tree/big", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_official_client_is_refused_where_nothing_runs(
    client: Hypeman, served: Served, tmp_path: Path
) -> None:
    served.fleet.put("web", State.STOPPED)
    with pytest.raises(InvalidStatus) as refused:
        cp_from_instance(client, "web", "/", tmp_path)
    assert refused.value.response.status_code == 409


@pytest.fixture
def websocket(served: Served, guest: Path) -> Iterator[Connection]:
    with unix_connect(str(served.socket), "ws://localhost/instances/web/cp", compression=None) as websocket:
        yield websocket


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([b"binary"], "must be text"),
        (["no json"], "JSON"),
        (['{"direction": "up", "guest_path": "/x"}'], "direction must be"),
        (['{"direction": "from"}'], "guest_path"),
        (['{"direction": "from", "guest_path": ""}'], "guest_path is empty"),
        (['{"direction": "from", "guest_path": "/x", "colour": 1}'], "colour"),
        (['{"direction": "to", "guest_path": "/x"}', '{"type": "header"}'], "not the end"),
        (['{"direction": "to", "guest_path": "/x"}', "no json"], "not JSON"),
        (['{"direction": "to", "guest_path": "/x", "is_dir": true}', b"x"], "no content"),
    ],
)
def test_a_copy_that_makes_no_sense_is_refused(
    websocket: Connection, guest: Path, messages: list[str | bytes], says: str
) -> None:
    for message in messages:
        websocket.send(message)
    answer = json.loads(websocket.recv())
    assert answer["type"] == "error"
    assert says in answer["message"]
    assert list(guest.iterdir()) == []


def test_a_client_that_leaves_in_the_middle_leaves_nothing(websocket: Connection, guest: Path) -> None:
    websocket.send('{"direction": "to", "guest_path": "/x"}')
    websocket.send(b"half of it")
    websocket.close()
    assert list(guest.iterdir()) == []


def test_holes_of_a_file_arrive_as_zeros(client: Hypeman, guest: Path, tmp_path: Path) -> None:
    with (guest / "sparse").open("wb") as file:
        file.seek(1_000_000)
        file.write(b"x")
    cp_from_instance(client, "web", "/sparse", tmp_path)
    assert (tmp_path / "sparse").read_bytes() == bytes(1_000_000) + b"x"
