"""docs/guest-protocol.md has every frame type, request, member and error code that the two sides have."""

import dataclasses
import re
from pathlib import Path

import pytest

from ramet.wire import messages
from ramet.wire.frames import CREDIT_BYTES, MAGIC, PAYLOAD_BYTES_MAX, FrameType

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/guest-protocol.md").read_text()
GUEST = ROOT / "native/guest/src"
RUST_STRUCT = re.compile(r"^pub struct (\w+)[^{;]*\{(.*?)^\}", re.DOTALL | re.MULTILINE)
RUST_MEMBER = re.compile(r"^    pub (\w+):", re.MULTILINE)
# Not on the wire by these names: what stands around them, and flattened members.
ENVELOPES = {"ok", "error", "exit", "identity", "size"}
KINDS = [
    kind for kind in vars(messages).values() if dataclasses.is_dataclass(kind) and isinstance(kind, type)
]


def named(word: str) -> bool:
    """Tell whether the page has `word` as code: alone, or as a member of JSON."""
    return re.search(rf'[`"]{word}[`"]', PAGE) is not None


def test_every_frame_type_has_its_row() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", PAGE, re.MULTILINE)
    assert [(int(number), name) for number, name in rows] == [(kind.value, kind.name) for kind in FrameType]


def test_every_request_of_the_guest_has_its_row_and_no_other() -> None:
    known = re.findall(r'^ {12}"(\w+)" => ', (GUEST / "session.rs").read_text(), re.MULTILINE)
    table = PAGE.partition("## Requests")[2].partition("\n\n`Identity`")[0]
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == sorted(known)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_members_that_the_host_knows_are_written(kind: type) -> None:
    assert [field.name for field in dataclasses.fields(kind) if not named(field.name)] == []


def test_members_that_the_guest_knows_are_written() -> None:
    structs = RUST_STRUCT.findall((GUEST / "messages.rs").read_text())
    assert len(structs) > 20
    members = {member for _, body in structs for member in RUST_MEMBER.findall(body)} - ENVELOPES
    assert sorted(member for member in members if not named(member)) == []


def test_error_codes_of_the_guest_are_written_and_no_others() -> None:
    sources = "".join(path.read_text() for path in GUEST.glob("*.rs") if not path.stem.endswith("_tests"))
    codes = set(re.findall(r'Refused::new\(\s*"(\w+)"', sources))
    codes |= set(
        re.findall(r'^ {8,12}(?:Some\()?(?:libc::.*|_) => "([a-z]+_[a-z_]+)"', sources, re.MULTILINE)
    )
    lists = re.findall(r"^Error codes.*?\.$", PAGE, re.DOTALL | re.MULTILINE)
    assert {code for text in lists for code in re.findall(r"`(\w+)`", text)} == codes


def test_the_numbers_are_those_of_the_code() -> None:
    assert MAGIC.hex(" ") in PAGE
    assert f"{PAYLOAD_BYTES_MAX:,}" in PAGE
    assert f"{CREDIT_BYTES:,}" in PAGE
    execs = re.search(r"EXECS_MAX: usize = (\d+);", (GUEST / "session.rs").read_text())
    assert execs is not None
    assert f"in a guest | {execs[1]} |" in PAGE
