"""The committed corpora, replayed: every input that once found something, or once reached something new.

Replaying alone would pass with targets that check nothing, so a bug is planted for each of them and must be
found. Inputs near the seeds are tried as well, the same ones on every machine.
"""

import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from fuzz import mutate, rust, seeds
from fuzz.targets import CORPORA, TARGETS, Target
from ramet.wire.frames import Reset

CORPUS_BYTES_MAX: Final = 200_000  # Of a target: a corpus is read by people, too.
NEAR_INPUT_COUNT: Final = 150  # Of each target.

INPUTS: Final = [
    pytest.param(target, file, id=f"{target.name} {file.name}")
    for target in TARGETS.values()
    for file in sorted(target.corpus.iterdir())
]


@pytest.mark.parametrize(("target", "file"), INPUTS)
def test_what_was_found_once_is_not_found_again(target: Target, file: Path) -> None:
    target.run(file.read_bytes())


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_nothing_is_found_near_the_seeds(target: Target) -> None:
    for data in mutate.inputs(target.seeds(), NEAR_INPUT_COUNT, target.input_bytes_max):
        target.run(data)


def test_every_target_has_a_corpus_and_every_corpus_a_target() -> None:
    assert {folder.name for folder in CORPORA.iterdir()} == {*TARGETS, *rust.TARGETS}


@pytest.mark.parametrize("name", [*TARGETS, *rust.TARGETS])
def test_a_corpus_is_small_and_its_inputs_no_longer_than_those_of_a_run(name: str) -> None:
    sizes = [file.stat().st_size for file in (CORPORA / name).iterdir()]
    assert 0 < sum(sizes) <= CORPUS_BYTES_MAX
    assert max(sizes) <= (TARGETS[name].input_bytes_max if name in TARGETS else rust.INPUT_BYTES_MAX)


@pytest.mark.parametrize("name", [*TARGETS, *rust.TARGETS])
def test_the_first_seeds_are_what_makes_them_makes_today(name: str) -> None:
    made = seeds.make()[name]
    committed = [(CORPORA / name / f"seed-{number:02}").read_bytes() for number in range(len(made))]
    assert committed == made


def _raise(*_: object, **__: object) -> Any:
    raise KeyError("planted")


# What is planted for each target: where, and what stands there instead.
BUGS: Final[dict[str, tuple[str, Any]]] = {
    "frames": ("ramet.wire.frames.FrameParser.feed", lambda self, data: [Reset()]),
    "messages": ("fuzz.wire.dump", lambda message: b"{}"),
    "boot_config": ("ramet.wire.boot_config.BootConfig.to_disk", lambda self: b""),
    "channel": ("ramet.guest.channel.Channel.is_lost", None),
    "copied": ("ramet.client.unpack._Names.place", lambda self, name: ("..", "x")),
    "layer": ("fuzz.images.Staging.add_layer", _raise),
    "archive": ("fuzz.images.Archive.candidates", _raise),
    "documents": ("fuzz.images.config_from_json", lambda stored: None),
    "reference": (
        "ramet.images.reference.Reference.display",
        property(lambda self: str(self).removeprefix("docker.io/")),
    ),
    "registry": ("ramet.images.registry.auth.Authorizer._bearer", lambda self, token: f"Bearer {token}\n"),
    "catalog": ("fuzz.catalog.load_names", _raise),
    "http1": ("fuzz.http.Answer.feed", lambda self, data: data[:1]),
    "exec_messages": ("fuzz.http.to_exec_command", _raise),
    "codec": ("fuzz.http.decode", _raise),
    "settings": ("fuzz.settings.load_settings", _raise),
    "units": ("fuzz.settings.format_size", lambda size_bytes: "7B"),
}


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_a_planted_bug_is_found_by_the_replay(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*BUGS[target.name])
    found = 0
    for data in target.seeds():
        try:
            target.run(data)
        except Exception:
            found += 1
    assert found > 0


@pytest.fixture(scope="module")
def replays() -> Path:
    """The folder of the Rust targets, built to run files."""
    return rust.build_replay()


@pytest.mark.parametrize("name", rust.TARGETS)
def test_what_was_found_once_in_rust_is_not_found_again(name: str, replays: Path) -> None:
    done = rust.replay(replays / name)
    assert done.returncode == 0, done.stderr


# What is planted in the Rust programs: in which file, what stands there, and what stands there instead.
RUST_BUGS: Final[dict[str, tuple[str, str, str]]] = {
    "guest_frames": ("guest/src/frames.rs", "|index| index + 1)", "|_| data.len())"),
    "guest_messages": ("guest/src/messages.rs", r'"\\u{unit:04x}"', r'"\\u{unit:x}"'),
    "guest_archive": ("guest/src/archive.rs", "block[156] = self.kind;", "block[156] = REGULAR;"),
    "pager_requests": (
        "pager/src/protocol.rs",
        "if !base.starts_with('/')",
        "if base.starts_with('/')",
    ),
    "pager_handshake": (
        "pager/src/handshake.rs",
        "Ok(Mapping { start, size_bytes, offset })",
        "Ok(Mapping { start, size_bytes, offset: offset + session_bytes })",
    ),
    "pager_packed": (
        "pager/src/packed.rs",
        "offset += u64::from(size_bytes);",
        "offset = footer.table_offset - HEADER_BYTES;",
    ),
}


def test_bugs_planted_in_the_rust_programs_are_found_by_the_replay() -> None:
    # Always at one place, so that cargo builds the dependencies only once.
    goal = rust.NATIVE / "target" / "planted"
    copy = goal / "native"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(rust.NATIVE, copy, ignore=shutil.ignore_patterns("target", "__pycache__"))
    assert RUST_BUGS.keys() == set(rust.TARGETS)
    for file, right, wrong in RUST_BUGS.values():
        source = copy / file
        text = source.read_text()
        assert right in text, f"{file} has changed: plant another bug"
        source.write_text(text.replace(right, wrong, 1))
    programs = rust.build_replay(copy, goal)
    assert [name for name in rust.TARGETS if rust.replay(programs / name).returncode == 0] == []
