"""Messages are right or they are a ProtocolError."""

import json
from contextlib import suppress
from ipaddress import IPv4Address
from typing import Any, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.wire.boot_config import (
    BOOT_CONFIG_BYTES_MAX,
    BOOT_CONFIG_MAGIC,
    SECTOR_BYTES,
    BootConfig,
    BootVolume,
)
from ramet.wire.frames import ProtocolError
from ramet.wire.messages import (
    ExecRequest,
    ExitStatus,
    Health,
    Hello,
    HelloAck,
    Identity,
    IdentityAnswer,
    Network,
    Refusal,
    Workload,
    WorkloadExited,
    dump,
    load,
    load_event,
    load_response,
)

NETWORK = Network(
    "02:fc:0a:00:00:07", IPv4Address("10.0.0.7"), 24, IPv4Address("10.0.0.1"), (IPv4Address("10.0.0.1"),)
)
WORKLOAD = Workload("exited", 300, None, 9, "killed")
BOOT = BootConfig(
    *(("/bin/sh", "-c", "echo ü"), {"PATH": "/bin"}, "/", "", "web", "ab" * 16, 7, b"e" * 32, NETWORK),
    overlay_parts=(1 << 20, 2 << 20),
    volumes=(BootVolume("/data", True, 0), BootVolume("/more", False)),
    skip_agent=True,
)


class Message(Protocol):
    def to_json(self) -> dict[str, object]: ...
    @classmethod
    def from_json(cls, message: dict[str, Any]) -> "Message": ...


MESSAGES: list[Message] = [
    Hello("0" * 32, "keep"),
    HelloAck("0" * 32, "0.1.0", WORKLOAD),
    WORKLOAD,
    NETWORK,
    Identity("web", "ab" * 16, 1_700_000_000_000_000_000, b"e" * 64, NETWORK),
    Identity("web", "ab" * 16, 0, b"e" * 64, None),
    IdentityAnswer(NETWORK.mac, NETWORK.ip, "web", True),
    IdentityAnswer(None, None, "web", False),
    Health(WORKLOAD, 1.5),
    ExecRequest(("ls", "ü\n"), {"A": "b"}, "/tmp", "1:1", 1.5, True),
    ExecRequest(("ls",)),
    ExitStatus(None, 9, True),
    ExitStatus(0),
]
MEMBERS = [(message, name) for message in MESSAGES for name in message.to_json()]


@pytest.mark.parametrize("message", MESSAGES, ids=repr)
def test_a_message_survives_the_wire(message: Message) -> None:
    payload = dump(message.to_json())
    assert payload.isascii()
    assert b"\n" not in payload
    assert type(message).from_json(load(payload)) == message
    assert type(message).from_json({**load(payload), "from_the_future": 1}) == message


@pytest.mark.parametrize(("message", "name"), MEMBERS, ids=lambda value: str(value)[:30])
def test_a_member_of_the_wrong_type_is_an_error(message: Message, name: str) -> None:
    wrongs: tuple[object, ...] = ([1], {"a": []})
    for wrong in wrongs:
        with pytest.raises(ProtocolError):
            type(message).from_json({**load(dump(message.to_json())), name: wrong})


@pytest.mark.parametrize(
    ("kind", "member"),
    [
        (Workload, {"state": "sleeping"}),
        (Workload, {"pid": True}),
        (Hello, {"streams": "forget"}),
        (Hello, {"version": "1"}),
        (Network, {"prefix_length": 33}),
        (Network, {"ip": "10.0.0.256"}),
        (Network, {"ip": "::1"}),
        (Identity, {"entropy": "xyz"}),
        (Health, {"uptime_s": 10**400}),
        (Health, {"uptime_s": float("nan")}),
        (ExitStatus, {"code": 1}),
        (ExitStatus, {"signal": None}),
    ],
)
def test_a_member_that_makes_no_sense_is_an_error(kind: type[Message], member: dict[str, object]) -> None:
    example = next(message for message in MESSAGES if type(message) is kind)
    with pytest.raises(ProtocolError):
        kind.from_json({**load(dump(example.to_json())), **member})


def test_a_hello_of_another_version_is_understood_as_far_as_it_goes() -> None:
    ack = HelloAck.from_json({"version": 2, "nonce": "ab", "workload": "a new kind of thing"})
    assert (ack.version, ack.nonce, ack.workload) == (2, "ab", None)


def test_a_response_is_an_answer_or_a_refusal() -> None:
    assert load_response(b'{"ok":{"pid":1}}') == {"pid": 1}
    assert load_response(dump(Refusal("internal", "no").to_json())) == Refusal("internal", "no")
    for wrong in (b"{}", b'{"ok":1}', b'{"error":"internal"}', b'{"error":{}}'):
        with pytest.raises(ProtocolError):
            load_response(wrong)


def test_unknown_events_are_none() -> None:
    exited = WorkloadExited(None, 9, "killed")
    assert load_event(dump(exited.to_json())) == exited
    assert load_event(b'{"event":"eclipse"}') is None


@given(st.binary(max_size=200))
def test_any_payload_is_an_object_or_an_error(payload: bytes) -> None:
    with suppress(ProtocolError):
        assert isinstance(load(payload), dict)


def test_a_payload_that_nests_too_deep_is_an_error() -> None:
    with pytest.raises(ProtocolError):
        load(b'{"a":' + b"[" * 65_000)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=4)
)
def test_any_json_in_any_member_is_a_message_or_an_error(value: object) -> None:
    for message, name in MEMBERS:
        with suppress(ProtocolError):
            type(message).from_json({**message.to_json(), name: value})


def test_a_boot_configuration_survives_its_disk() -> None:
    disk = BOOT.to_disk()
    assert len(disk) % SECTOR_BYTES == 0
    assert disk.startswith(BOOT_CONFIG_MAGIC)
    length = int.from_bytes(disk[8:12])
    assert json.loads(disk[12 : 12 + length])["argv"] == ["/bin/sh", "-c", "echo ü"]
    assert not any(disk[12 + length :])
    assert BootConfig.from_disk(disk) == BOOT


@pytest.mark.parametrize(
    "disk",
    [b"", b"RAMETCF1", b"RAMETCF0" + bytes(504), b"RAMETCF1\0\0\2\0" + bytes(500), b"RAMETCF1" + bytes(504)],
)
def test_another_disk_is_not_a_boot_configuration(disk: bytes) -> None:
    with pytest.raises(ProtocolError):
        BootConfig.from_disk(disk)


@pytest.mark.parametrize(
    "members",
    [
        {"volumes": {}},
        {"volumes": ["/data"]},
        {"volumes": [{"path": 7, "read_only": True}]},
        {"volumes": [{"path": "/data"}]},
        {"volumes": [{"path": "/data", "read_only": True, "overlay_part": "0"}]},
        {"overlay_parts": [0]},
        {"overlay_parts": ["1"]},
        {"skip_agent": 1},
    ],
)
def test_a_member_of_another_kind_is_not_taken(members: dict[str, Any]) -> None:
    disk = BOOT.to_disk()
    length = int.from_bytes(disk[8:12])
    text = json.dumps({**json.loads(disk[12 : 12 + length]), **members}).encode()
    with pytest.raises(ProtocolError):
        BootConfig.from_disk(BOOT_CONFIG_MAGIC + len(text).to_bytes(4) + text)
    BootConfig.from_disk(disk)


def test_a_boot_configuration_has_a_limit() -> None:
    huge = BootConfig(("a" * BOOT_CONFIG_BYTES_MAX,), {}, "/", "", "web", "ab" * 16, 0, b"e" * 32)
    with pytest.raises(ProtocolError):
        huge.to_disk()
