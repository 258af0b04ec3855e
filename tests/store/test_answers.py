"""Answers are kept for a day, as many as there is room for, over a restart, and a damaged file is no end."""

from pathlib import Path

import pytest

from ramet.core.answers import Answer, Asked
from ramet.store import answers
from ramet.store.answers import KEPT_S, AnswerStore
from ramet.store.database import StateUnwritable

ANSWER = Answer(201, "application/json", b"{}")


class Clock:
    now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


def test_what_was_answered_is_there_after_a_restart(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "answers.db")
    store.begin("done", "r1")
    store.keep("done", ANSWER)
    store.begin("begun", "r2")
    store.begin("failed", "r3")
    store.forget("failed")
    store.close()
    store = AnswerStore(tmp_path / "answers.db")
    assert store.find("done") == Asked("r1", ANSWER)
    assert store.find("begun") == Asked("r2", None)
    assert store.find("failed") is None
    store.close()


def test_an_answer_is_kept_for_a_day_and_its_key_is_free_then() -> None:
    clock = Clock()
    store = AnswerStore(now=clock)
    store.begin("key", "r1")
    store.keep("key", ANSWER)
    clock.now_s += KEPT_S - 1
    assert store.find("key") is not None
    clock.now_s += 1
    assert store.find("key") is None
    store.begin("key", "r2")
    assert store.find("key") == Asked("r2", None)


def test_the_oldest_go_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "ANSWER_COUNT_MAX", 3)
    clock = Clock()
    store = AnswerStore(now=clock)
    for number in range(5):
        clock.now_s += 1
        store.begin(f"key{number}", "r")
    assert [store.find(f"key{number}") is not None for number in range(5)] == [False, False, True, True, True]


def test_the_oldest_go_when_all_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "BYTES_MAX", 250)
    clock = Clock()
    store = AnswerStore(now=clock)
    for number in range(4):
        clock.now_s += 1
        store.begin(f"key{number}", "r")
        store.keep(f"key{number}", Answer(200, "", b"x" * 100))
    store.begin("last", "r")
    assert [store.find(f"key{number}") is not None for number in range(4)] == [False, False, True, True]


def test_a_damaged_file_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "answers.db"
    path.write_bytes(b"no database" * 1000)
    store = AnswerStore(path)
    store.begin("key", "r")
    assert store.find("key") == Asked("r", None)
    store.close()


def test_a_file_that_cannot_be_written_is_an_error_of_ours() -> None:
    store = AnswerStore()
    store.close()
    with pytest.raises(StateUnwritable):
        store.begin("key", "r")


def test_what_is_under_way_stays_when_others_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "ANSWER_COUNT_MAX", 3)
    clock = Clock()
    store = AnswerStore(now=clock)
    store.begin("slow", "r")
    for number in range(5):
        clock.now_s += 1
        store.begin(f"key{number}", "r")
        store.keep(f"key{number}", ANSWER)
    assert store.find("slow") == Asked("r", None)


def test_an_answer_that_nobody_has_room_for_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "ANSWER_COUNT_MAX", 1)
    monkeypatch.setattr(answers, "BYTES_MAX", 250)
    clock = Clock()
    store = AnswerStore(now=clock)
    for number in range(4):
        clock.now_s += 1
        store.begin(f"key{number}", "r")
    for number in range(3):
        store.keep(f"key{number}", Answer(200, "", b"x" * 100))
    store.begin("last", "r")
    assert store.find("last") == Asked("r", None)
