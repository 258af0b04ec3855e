"""What requests are refused for, and how the answers look."""

import re
import socket
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from ramet.api import HttpServer
from ramet.api.errors import STATUS, status_of
from ramet.core.errors import Broken, Conflict, Exhausted, Invalid, NotFound, RametError, Unsupported
from ramet.core.snapshot import SnapshotKind
from ramet.core.spec import State
from ramet.images import LINUX_AMD64, PullStatus, PullView, parse_platform, parse_reference
from ramet.images.errors import NotInRegistry, RegistryBusy
from ramet.instance.fleet_types import WrongState
from tests.api.stand_in import Served
from tests.api.stand_in_images import image

IMAGE = "docker.io/library/alpine:latest"


def create(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post("/instances", json={"name": "web", "image": IMAGE, **fields})


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"hotplug_size": "3GB"}, "hotplug_size"),
        ({"credentials": {"KEY": {}}}, "credentials"),
        ({"devices": ["gpu0"]}, "devices"),
        ({"gpu": {"profile": "L40S-2Q"}}, "gpu"),
        ({"network": {"egress": {"enabled": True}}}, "network.egress"),
        ({"platform": "linux/arm64"}, "platform"),
    ],
)
def test_a_known_field_that_is_not_honoured_yet_is_refused_by_name(
    http: httpx.Client, served: Served, fields: dict[str, Any], field: str
) -> None:
    answer = create(http, **fields)
    assert (answer.status_code, answer.json()["code"]) == (501, "not_supported")
    assert answer.json()["fields"]["field"] == field
    assert served.fleet.list() == []


def test_a_hypervisor_that_this_host_has_not_is_refused_with_those_it_has(
    http: httpx.Client, served: Served
) -> None:
    answer = create(http, hypervisor="firecracker")
    assert (answer.status_code, answer.json()["code"]) == (501, "hypervisor_unavailable")
    assert "use one of qemu" in answer.json()["remedy"]
    assert served.fleet.list() == []


@pytest.mark.parametrize(
    "fields",
    [
        {"skip_guest_agent": False, "skip_kernel_headers": True},
        {"hotplug_size": "0", "ttl": "0s", "volumes": [], "devices": [], "credentials": {}},
        {
            "auto_standby": {"enabled": False},
            "health_check": {"type": "none"},
            "restart_policy": {"policy": "never"},
        },
        {"network": {"enabled": True, "egress": {"enabled": False}}, "platform": "linux/amd64"},
        {"env": None, "tags": None, "hypervisor": "qemu"},
    ],
)
def test_asking_for_what_is_so_anyway_is_accepted(http: httpx.Client, fields: dict[str, Any]) -> None:
    assert create(http, **fields).status_code == 201


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"nmae": "x"}, "no field 'nmae'"),
        ({"network": {"enable": True}}, "no field 'network.enable'"),
        ({"name": "Web"}, "cannot be the name"),
        ({"name": "a" * 64}, "cannot be the name"),
        ({"vcpus": 0}, "vcpus is 0"),
        ({"vcpus": 17}, "vcpus is 17"),
        ({"vcpus": "two"}, "'vcpus'"),
        ({"size": "63MB"}, "size is 63MB"),
        ({"size": "33GB"}, "size is 33GB"),
        ({"size": "lots"}, "'lots' is not a size"),
        ({"overlay_size": "101GB"}, "overlay_size is 101GB"),
        ({"env": {"A=B": "x"}}, "environment variable"),
        ({"env": {"A": "x\0"}}, "environment variable"),
        ({"env": {"A": "x" * 140_000}}, "env is larger"),
        ({"cmd": ["x\0"]}, "NUL"),
        ({"tags": {str(number): "x" for number in range(51)}}, "51 tags"),
        ({"tags": {"bad!": "x"}}, "key of a tag"),
        ({"tags": {"good": "x" * 257}}, "longer than 256"),
        ({"hypervisor": "vmware"}, "no hypervisor"),
        ({"platform": "windows/amd64"}, "no platform"),
        ({"ttl": "soon"}, "not a duration"),
        ({"network": {"bandwidth_upload": "fast"}}, "'fast' is not a rate"),
        ({"network": {"bandwidth_upload": "63Kbps"}}, "bandwidth_upload is 63Kbps, and must be from 64Kbps"),
        ({"network": {"bandwidth_download": "0bps"}}, "bandwidth_download is 0bps"),
        ({"network": {"bandwidth_download": "2Tbps"}}, "to 1Tbps"),
        ({"network": {"bandwidth_download": "1Gbps", "enabled": False}}, "there is no network"),
    ],
)
def test_what_can_never_be_is_refused_in_one_sentence(
    http: httpx.Client, served: Served, fields: dict[str, Any], says: str
) -> None:
    answer = create(http, **fields)
    assert answer.status_code == 400
    assert says in answer.json()["message"]
    assert "\n" not in answer.json()["message"]
    assert served.fleet.list() == []


def test_defaults_and_rounding(http: httpx.Client, served: Served) -> None:
    create(http)
    spec = served.fleet.get("web").record.spec
    assert (spec.vcpu_count, spec.memory_bytes, spec.overlay_bytes) == (2, 1 << 30, 10 << 30)
    assert (spec.hypervisor, spec.image, spec.has_network) == ("qemu", IMAGE, True)
    assert (spec.entrypoint, spec.cmd) == (None, None)
    assert create(http, name="odd", size="64.5MB").json()["size"] == "65MB"


def test_rates_are_taken_as_people_write_them_and_shown_in_the_largest_unit(
    http: httpx.Client, served: Served
) -> None:
    answer = create(http, network={"bandwidth_download": "125MB/s", "bandwidth_upload": "20Mbit/s"})
    spec = served.fleet.get("web").record.spec
    assert (spec.download_bytes_per_s, spec.upload_bytes_per_s) == (125_000_000, 2_500_000)
    network = answer.json()["network"]
    assert (network["bandwidth_download"], network["bandwidth_upload"]) == ("1Gbps", "20Mbps")
    plain = create(http, name="plain", network={"bandwidth_download": ""}).json()["network"]
    assert (plain.get("bandwidth_download"), plain.get("bandwidth_upload")) == (None, None)


def test_a_network_that_is_not_limited_as_asked_says_why(http: httpx.Client, served: Served) -> None:
    create(http)
    assert http.get("/instances/web").json()["network"].get("degraded") is None
    served.fleet.degraded = "no limits today"
    assert http.get("/instances/web").json()["network"]["degraded"] == "no limits today"


def test_a_missing_image_is_pulled(http: httpx.Client, served: Served) -> None:
    answer = create(http, image="nope")
    assert (answer.status_code, answer.json()["code"]) == (404, "image_not_in_registry")
    served.catalog.pulls.offered.add("docker.io/library/nope:latest")
    assert create(http, image="nope").status_code == 201


def test_an_image_for_another_platform_is_not_booted(http: httpx.Client, served: Served) -> None:
    found = served.catalog.put("docker.io/library/arm:1")
    served.catalog.images[found.name] = replace(found, platform=parse_platform("linux/arm64/v8"))
    answer = create(http, image=found.name)
    assert (answer.status_code, answer.json()["code"]) == (400, "no_matching_platform")
    assert answer.json()["remedy"].endswith("ramet pull --platform linux/amd64 docker.io/library/arm:1")
    assert served.fleet.list() == []


def test_an_image_is_not_ready_before_it_has_its_name(http: httpx.Client, served: Served) -> None:
    name = "docker.io/library/same:2"
    found = image(name, ("docker.io/library/same:1",))  # So far another name's alone.
    served.catalog.images[name] = found
    view = PullView(
        parse_reference(name),
        LINUX_AMD64,
        PullStatus.CONVERTING,
        found.digest,
        None,
        None,
        found.created_at,
        {},
        1,
        1,
        10,
        10,
    )
    served.catalog.pulls.stages = [view, view]
    http.post("/images", json={"name": name})
    path = f"/images/{name}@{found.digest}"
    answers = [http.get(path).json() for _ in range(2)]
    assert [answer["status"] for answer in answers] == ["converting", "ready"]
    assert [answer["name"] for answer in answers] == [name, name]


def test_a_pull_whose_image_has_its_name_is_not_listed_beside_it(
    http: httpx.Client, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = served.catalog.put("docker.io/library/same:1")
    done = PullView(
        parse_reference(found.name),
        LINUX_AMD64,
        PullStatus.CONVERTING,
        found.digest,
        None,
        None,
        found.created_at,
        {},
        1,
        1,
        10,
        10,
    )
    other = replace(done, reference=parse_reference("docker.io/library/same:2"))
    failed = replace(done, error=NotInRegistry("No such image"), status=PullStatus.FAILED)
    monkeypatch.setattr(served.catalog.pulls, "list", lambda: [done, other, failed])
    listed = [(each["name"], each["status"]) for each in http.get("/images").json()]
    assert [pair for pair in listed if "same" in pair[0]] == [
        (found.name, "ready"),
        ("docker.io/library/same:2", "converting"),
        (found.name, "failed"),
    ]


@pytest.mark.parametrize(("wait_s", "header"), [(30.0, "30"), (0.2, "1"), (7, "7")])
def test_a_registrys_wish_to_be_left_alone_is_passed_on(
    http: httpx.Client, served: Served, wait_s: float, header: str
) -> None:
    served.catalog.pulls.failure = RegistryBusy("Not now", remedy="later", retry_after_s=wait_s)
    for answer in (http.post("/images", json={"name": "app"}), create(http, image="app")):
        assert (answer.status_code, answer.json()["code"]) == (429, "registry_rate_limited")
        assert answer.headers["retry-after"] == header
        assert "x-should-retry" not in answer.headers
    served.catalog.pulls.failure = NotInRegistry("No such image")
    assert "retry-after" not in http.post("/images", json={"name": "app"}).headers


def test_an_image_without_a_command_needs_one(http: httpx.Client, served: Served) -> None:
    served.catalog.put("docker.io/library/bare:latest", command=())
    assert create(http, image="docker.io/library/bare:latest").status_code == 400
    assert create(http, image="docker.io/library/bare:latest", cmd=["/init"]).status_code == 201


def test_a_taken_name_is_a_conflict(http: httpx.Client) -> None:
    create(http)
    assert (create(http).status_code, create(http).json()["code"]) == (409, "name_taken")


@pytest.mark.parametrize("body", [b"{", b"[]", b'"text"', b""])
def test_a_body_that_is_no_object_is_refused(http: httpx.Client, body: bytes) -> None:
    answer = http.post("/instances", content=body, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


def test_a_body_beyond_the_limit_is_not_read(http: httpx.Client) -> None:
    answer = create(http, env={"A": "x" * (2 << 20)})
    assert (answer.status_code, answer.json()["code"]) == (413, "request_too_large")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("PUT", "/instances", 405)])
def test_what_does_not_exist_is_told_in_our_form(
    http: httpx.Client, method: str, path: str, status: int
) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status
    assert answer.json().keys() == {
        "code",
        "message",
        "details",
        "inner_error",
        "remedy",
        "fields",
        "request_id",
    }


@pytest.mark.parametrize(
    ("state", "body", "status", "code"),
    [
        (State.RUNNING, {"name": "kid"}, 409, "invalid_state"),
        (State.RUNNING, {"name": "kid", "from_running": True}, 201, None),
        (State.RUNNING, {"name": "kid", "from_running": True, "target_state": "Running"}, 201, None),
        (State.RUNNING, {"name": "kid", "from_running": True, "target_state": "Standby"}, 201, None),
        (State.RUNNING, {"name": "kid", "target_state": "Stopped"}, 409, "invalid_state"),
        (State.RUNNING, {"name": "kid", "from_running": True, "target_state": "Paused"}, 400, "bad_request"),
        (State.RUNNING, {"name": "kid", "from_running": True, "target_state": "Asleep"}, 400, "bad_request"),
        (State.RUNNING, {"name": "Kid", "from_running": True}, 400, "invalid_name"),
        (State.RUNNING, {"name": "src", "from_running": True}, 409, "name_taken"),
        (State.STOPPED, {"name": "kid"}, 201, None),
        (State.STANDBY, {"name": "kid", "from_running": True}, 201, None),
        (State.STANDBY, {"name": "kid", "target_state": "Running"}, 201, None),
        (State.PAUSED, {"name": "kid", "from_running": True}, 409, "invalid_state"),
        (State.INITIALIZING, {"name": "kid", "from_running": True}, 409, "invalid_state"),
        (State.UNKNOWN, {"name": "kid"}, 409, "invalid_state"),
    ],
)
def test_forks_by_the_state_of_their_source(
    http: httpx.Client, served: Served, state: State, body: dict[str, Any], status: int, code: str | None
) -> None:
    served.fleet.put("src", state)
    answer = http.post("/instances/src/fork", json=body)
    assert (answer.status_code, answer.json().get("code")) == (status, code)
    if code is None:
        assert answer.json()["state"] == body.get("target_state", state)


@pytest.mark.parametrize("path", ["/instances/src/forks", "/snapshots/snap/forks"])
def test_many_forks_by_name_come_in_the_order_of_their_names(
    http: httpx.Client, served: Served, path: str
) -> None:
    served.fleet.put("src", State.STANDBY)
    served.snapshots.put("src", name="snap")
    answer = http.post(path, json={"names": ["zoe", "adam"], "target_state": "Stopped"})
    assert (answer.status_code, answer.json()["succeeded"]) == (201, 2)
    found = [(fork["name"], fork["instance"]["state"]) for fork in answer.json()["forks"]]
    assert found == [("zoe", "Stopped"), ("adam", "Stopped")]


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        (SnapshotKind.STOPPED, {"target_hypervisor": "qemu"}, 200),
        (SnapshotKind.STANDBY, {"target_hypervisor": "qemu"}, 200),
        (SnapshotKind.STOPPED, {"target_hypervisor": "qemu-microvm"}, 200),
        (SnapshotKind.STANDBY, {"target_hypervisor": "qemu-microvm"}, 501),
        (SnapshotKind.STOPPED, {"target_hypervisor": "firecracker"}, 501),
        (SnapshotKind.STOPPED, {"target_hypervisor": "vmware"}, 400),
    ],
)
def test_a_snapshot_goes_on_with_another_hypervisor_if_it_has_no_memory(
    http: httpx.Client, served: Served, kind: SnapshotKind, body: dict[str, Any], status: int
) -> None:
    served.fleet.put("src", State.STOPPED)
    served.snapshots.put("src", kind, "snap")
    answer = http.post("/instances/src/snapshots/snap/restore", json=body)
    assert answer.status_code == status
    if status == 501:
        assert answer.json()["fields"]["field"] == "target_hypervisor"
    forked = http.post("/snapshots/snap/fork", json={"name": "kid", **body})
    assert forked.status_code == (201 if status == 200 else status)
    if status == 200:
        assert forked.json()["hypervisor"] == body["target_hypervisor"]


def test_an_instances_own_snapshot_is_meant_where_several_have_the_name(
    http: httpx.Client, served: Served
) -> None:
    for name in ("one", "two"):
        served.fleet.put(name, State.STOPPED)
        served.snapshots.put(name, SnapshotKind.STOPPED, "clean")
    assert http.get("/snapshots/clean").json()["code"] == "snapshot_ambiguous"
    answer = http.post("/instances/two/snapshots/clean/restore")
    assert (answer.status_code, answer.json()["name"]) == (200, "two")
    foreign = served.snapshots.list(source="one")[0].id
    answer = http.post(f"/instances/two/snapshots/{foreign}/restore")
    assert (answer.status_code, answer.json()["code"]) == (409, "foreign_snapshot")


def test_an_image_that_only_a_snapshot_stands_on_is_in_use(http: httpx.Client, served: Served) -> None:
    create(http)
    served.snapshots.put("web", name="snap")
    http.delete("/instances/web")
    answer = http.delete(f"/images/{IMAGE}")
    assert (answer.status_code, answer.json()["code"]) == (409, "image_in_use")
    http.delete("/snapshots/snap")
    assert http.delete(f"/images/{IMAGE}").status_code == 204


def test_many_forks_report_each_child(http: httpx.Client, served: Served) -> None:
    served.fleet.put("src")
    served.fleet.put("kid-2")
    served.fleet.failing.add("kid-3")
    answer = http.post("/instances/src/forks", json={"count": 4, "name_prefix": "kid"})
    assert (answer.status_code, answer.json()["succeeded"]) == (201, 2)
    forks = answer.json()["forks"]
    assert [fork["name"] for fork in forks] == ["kid-1", "kid-2", "kid-3", "kid-4"]
    assert [fork["error"] and fork["error"]["code"] for fork in forks] == [
        None,
        "name_taken",
        "internal_error",
        None,
    ]
    assert [fork["instance"] is None for fork in forks] == [False, True, True, False]


def test_when_every_fork_failed_the_answer_is_the_first_error(http: httpx.Client, served: Served) -> None:
    served.fleet.put("src")
    served.fleet.put("kid-1")
    answer = http.post("/instances/src/forks", json={"count": 1, "name_prefix": "kid"})
    assert (answer.status_code, answer.json()["code"]) == (409, "name_taken")


@pytest.mark.parametrize("count", [0, 1001, -1])
def test_the_number_of_forks_is_bounded(http: httpx.Client, served: Served, count: int) -> None:
    served.fleet.put("src")
    assert http.post("/instances/src/forks", json={"count": count, "name_prefix": "kid"}).status_code == 400


def test_a_prefix_that_leaves_no_room_for_the_number_is_refused(http: httpx.Client, served: Served) -> None:
    served.fleet.put("src")
    answer = http.post("/instances/src/forks", json={"count": 10, "name_prefix": "k" * 61})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_name")


@pytest.mark.parametrize(("query", "status"), [("state=Running&timeout=x", 400), ("state=x", 400), ("", 400)])
def test_a_wait_that_makes_no_sense_is_refused(
    http: httpx.Client, served: Served, query: str, status: int
) -> None:
    served.fleet.put("web")
    assert http.get(f"/instances/web/wait?{query}").status_code == status


def test_logs_of_nobody_are_not_found(http: httpx.Client) -> None:
    assert http.get("/instances/web/logs").status_code == 404


@pytest.mark.parametrize("query", ["tail=-1", "tail=100001", "source=kernel", "follow=perhaps"])
def test_log_options_are_checked(http: httpx.Client, served: Served, query: str) -> None:
    served.fleet.put("web")
    assert http.get(f"/instances/web/logs?{query}").status_code == 400


def test_an_import_needs_an_absolute_path(http: httpx.Client) -> None:
    assert http.post("/images/import", json={"path": "image.tar"}).status_code == 400
    assert (
        http.post("/images/import", json={"path": "/nowhere/image.tar"}).json()["code"]
        == "image_source_not_found"
    )


def test_the_description_lists_what_is_there(http: httpx.Client) -> None:
    described = http.get("/spec.json").json()
    assert described == http.get("/spec.yaml").json()
    assert "/instances/{id}/forks" in described["paths"]
    page = http.get("/swagger").text
    for path, calls in described["paths"].items():
        assert f"<code>{path}</code>" in page
        for call in calls.values():
            assert f"<details id={call['operationId']}>" in page
    for name, schema in described["components"]["schemas"].items():
        assert f"<h3 id=type-{name}>" in page
        for field in schema["properties"]:
            assert f"<td><code>{field}</code>" in page
    targets = re.findall(r"href=#([\w-]+)", page)
    assert [target for target in targets if f"id={target}>" not in page] == []


def test_the_description_says_what_a_token_must_allow_and_what_filters(http: httpx.Client) -> None:
    paths = http.get("/spec.json").json()["paths"]
    assert paths["/health"]["get"]["security"] == []
    assert paths["/capabilities"]["get"]["security"] == [{"token": []}]
    assert paths["/snapshots/{snapshot_id}"]["delete"]["security"] == [{"token": ["snapshot:delete"]}]
    for path in ("/instances", "/images", "/volumes", "/snapshots"):
        assert "tags" in [each["name"] for each in paths[path]["get"]["parameters"]]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Invalid, 400),
        (NotFound, 404),
        (Conflict, 409),
        (WrongState, 409),
        (Exhausted, 409),
        (Unsupported, 501),
        (Broken, 500),
        (RametError, 500),
    ],
)
def test_the_kind_of_an_error_decides_the_status(error: type[RametError], status: int) -> None:
    assert status_of(error("x")) == status


def test_every_kind_of_error_has_a_status() -> None:
    # What the client raises comes from a server and never goes through one.
    kinds = {kind for kind in RametError.__subclasses__() if not kind.__module__.startswith("ramet.client")}
    assert kinds <= STATUS.keys()


def test_connections_over_tcp_send_at_once() -> None:
    """What is written in two parts does not wait for the word that the first has come."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        HttpServer(FastAPI(), listener)
        with socket.create_connection(listener.getsockname()):
            server, _ = listener.accept()
            with server:
                assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
