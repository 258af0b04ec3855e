"""Which images go when: by a clock that is set by hand, over restarts, and not from under anybody's hands."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramet.core.errors import Broken
from ramet.core.ids import InstanceId
from ramet.core.spec import InstanceIdentity, InstanceRecord, InstanceSpec, State
from ramet.policies.retention import (
    LayerConfig,
    LayerKeeper,
    RetentionConfig,
    RetentionKeeper,
    may_go,
    unused_since,
)
from ramet.store.unused import UnusedFile, UnusedUnwritable
from tests.waiting import until

pytestmark = pytest.mark.anyio

MONTH_S = 30 * 86_400.0
ALL = RetentionConfig(MONTH_S, ("*",))
MADE_AT = 1_000_000.0
MADE = datetime.fromtimestamp(MADE_AT, UTC)


@dataclass(frozen=True)
class Image:
    digest: str
    tags: tuple[str, ...] = ()
    created_at: datetime = MADE


class Host:
    """Images by digest, who uses them, and a clock. `before_removal` is what happens just before one goes."""

    def __init__(self, folder: Path, *digests: str) -> None:
        self.images = {digest: Image(digest, (f"docker.io/library/{digest}:1",)) for digest in digests}
        self.used, self.now = set[str](), MADE_AT
        self.times = UnusedFile(folder / "unused.json")
        self.before_removal: Callable[[], None] = lambda: None
        self.failing = False

    def list(self) -> list[Image]:
        return list(self.images.values())

    async def discard(self, digest: str, *, is_wanted: Callable[[], bool]) -> bool:
        await anyio.lowlevel.checkpoint()
        if self.failing:
            raise Broken("it cannot be removed")
        self.before_removal()
        if is_wanted():
            return False
        del self.images[digest]
        return True

    def keeper(self, config: RetentionConfig | None = ALL, interval_s: float = 60.0) -> RetentionKeeper:
        return RetentionKeeper(self, self.times, lambda: self.used, config, lambda: self.now, interval_s)

    async def live(self, keeper: RetentionKeeper, days: int, config: RetentionConfig = ALL) -> None:
        for _ in range(days):
            self.now += 86_400.0
            await keeper.sweep(config)


def record(image: str) -> InstanceRecord:
    spec = InstanceSpec("i", image, "fake", 1, 1, 1)
    return InstanceRecord(spec, InstanceIdentity(InstanceId("x"), "x", None, "0" * 32, 0.0), State.RUNNING)


@pytest.mark.parametrize(
    ("tags", "allowed", "expected"),
    [
        (("docker.io/library/debian:12",), ("docker.io/library/debian",), True),
        (("docker.io/library/debian:12",), ("docker.io/library/deb",), False),
        (("docker.io/library/debian-slim:12",), ("docker.io/library/debian",), False),
        (("localhost:5000/app:1", "localhost:5000/team/app:1"), ("localhost:5000/*",), True),
        (("localhost:5000/app:1",), ("localhost:5000/app",), True),
        (("localhost:5000/app:1",), ("localhost:500/*", "docker.io/*"), False),
        (("docker.io/a/b:1", "docker.io/c/d:1"), ("docker.io/a/*",), False),
        (("docker.io/a/b:1", "docker.io/c/d:1"), ("docker.io/a/*", "docker.io/c/d"), True),
        (("docker.io/a/b:1",), (), False),
        ((), ("docker.io/*",), False),
        ((), ("*",), True),
    ],
)
def test_only_what_is_listed_under_all_of_its_names_may_go(
    tags: tuple[str, ...], allowed: tuple[str, ...], expected: bool
) -> None:
    assert may_go(tags, allowed) is expected


times = st.floats(min_value=0, max_value=4e9)


@given(st.dictionaries(st.sampled_from("abc"), times), st.sets(st.sampled_from("abc")), times)
def test_nothing_is_unused_since_before_it_was_made_or_since_later_than_now(
    before: Mapping[str, float], used: set[str], now: float
) -> None:
    found = unused_since([Image(digest) for digest in "ab"], used, before, now)
    assert set(found) == {"a", "b"} - used
    for digest, since in found.items():
        assert since <= now
        assert since == now or since >= MADE_AT
        if digest in before and MADE_AT <= before[digest] <= now:
            assert since == before[digest]


async def test_what_nobody_used_for_a_month_goes_and_what_somebody_uses_stays(tmp_path: Path) -> None:
    host = Host(tmp_path, "used", "idle")
    host.used = {"used"}
    keeper = host.keeper()
    await keeper.sweep(ALL)
    await host.live(keeper, 29)
    assert set(host.images) == {"used", "idle"}
    await host.live(keeper, 1)
    assert set(host.images) == {"used"}
    host.used.clear()
    await host.live(keeper, 30)
    assert set(host.images) == {"used"}  # Unused since the first look at which it was.
    await host.live(keeper, 1)
    assert host.images == {}
    await keeper.sweep(ALL)
    assert host.times.load() == {}


async def test_what_is_not_listed_stays_forever(tmp_path: Path) -> None:
    host = Host(tmp_path, "mine", "theirs")
    config = RetentionConfig(MONTH_S, ("docker.io/library/theirs",))
    keeper = host.keeper(config)
    await host.live(keeper, 100, config)
    assert set(host.images) == {"mine"}


async def test_a_restart_neither_forgets_the_time_nor_begins_it_anew(tmp_path: Path) -> None:
    host = Host(tmp_path, "idle")
    await host.keeper().sweep(ALL)
    for _ in range(29):
        host.now += 86_400.0
        async with anyio.create_task_group() as group:
            group.start_soon(host.keeper().run)
            await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        assert set(host.images) == {"idle"}
        assert host.times.load() == {"idle": MADE_AT}
    host.now += 86_400.0
    async with anyio.create_task_group() as group:
        group.start_soon(host.keeper().run)
        await until(lambda: not host.images)
        group.cancel_scope.cancel()


async def test_a_moments_use_is_written_down_at_once(tmp_path: Path) -> None:
    host = Host(tmp_path, "idle")
    await host.keeper().sweep(ALL)
    host.now += 29 * 86_400.0
    keeper = host.keeper()
    async with anyio.create_task_group() as group:
        group.start_soon(keeper.run)
        await anyio.lowlevel.checkpoint()
        keeper.see(record("idle"))  # Made and deleted between two looks.
        await until(lambda: host.times.load() == {"idle": host.now})
        group.cancel_scope.cancel()
    host.now += 29 * 86_400.0
    await host.keeper().sweep(ALL)
    assert set(host.images) == {"idle"}


async def test_what_is_used_at_the_very_moment_it_would_go_stays(tmp_path: Path) -> None:
    for use in ("instance", "pull"):
        host = Host(tmp_path, "idle")
        keeper = host.keeper()
        await keeper.sweep(ALL)
        host.now += MONTH_S
        if use == "instance":
            host.before_removal = lambda host=host: host.used.add("idle")  # type: ignore[misc]
        else:
            host.before_removal = lambda keeper=keeper: keeper.see_used("idle")  # type: ignore[misc]
        await keeper.sweep(ALL)
        assert set(host.images) == {"idle"}


async def test_a_clock_that_jumps_removes_nothing_that_was_just_made(tmp_path: Path) -> None:
    host = Host(tmp_path, "idle")
    keeper = host.keeper()
    host.now = 0.0  # Before anything told the host what time it is.
    await keeper.sweep(ALL)
    host.now = MADE_AT + 60.0
    await keeper.sweep(ALL)
    assert set(host.images) == {"idle"}


async def test_what_cannot_be_removed_is_tried_again_and_holds_up_nobody(tmp_path: Path) -> None:
    host = Host(tmp_path, "idle")
    keeper = host.keeper()
    await keeper.sweep(ALL)
    host.now += MONTH_S
    host.failing = True
    await keeper.sweep(ALL)
    assert set(host.images) == {"idle"}
    host.failing = False
    await keeper.sweep(ALL)
    assert host.images == {}


async def test_what_cannot_be_written_down_is_not_gone_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path, "idle")
    keeper = host.keeper()
    await keeper.sweep(ALL)
    host.images["other"] = Image("other")  # Whose time is to be written down.
    host.now += 2 * MONTH_S

    def refuse(since: Mapping[str, float]) -> None:
        raise UnusedUnwritable("the disk is full")

    monkeypatch.setattr(host.times, "save", refuse)
    await keeper.sweep(ALL)
    assert set(host.images) == {"idle", "other"}
    monkeypatch.undo()
    await keeper.sweep(ALL)
    assert set(host.images) == {"other"}


async def test_a_disk_that_takes_its_time_keeps_nobody_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(tmp_path, "idle", "other")
    keeper = host.keeper()
    saving, may_end, save = threading.Event(), threading.Event(), host.times.save

    def slowly(since: Mapping[str, float]) -> None:
        saving.set()
        assert may_end.wait(20)
        save(since)

    monkeypatch.setattr(host.times, "save", slowly)
    async with anyio.create_task_group() as group:
        group.start_soon(keeper.sweep, ALL)
        await anyio.to_thread.run_sync(saving.wait)
        keeper.see_used("other")
        may_end.set()
    host.now += 2 * MONTH_S
    monkeypatch.undo()
    await keeper.sweep(ALL)
    assert set(host.images) == {"other"}  # It was used while that was written down.


async def test_off_it_removes_nothing_and_forgets_what_will_not_be_true_later(tmp_path: Path) -> None:
    host = Host(tmp_path, "idle")
    await host.keeper().sweep(ALL)
    host.now += 2 * MONTH_S
    await host.keeper(None).run()
    assert set(host.images) == {"idle"}
    assert host.times.load() == {}
    await host.keeper().sweep(ALL)
    assert set(host.images) == {"idle"}


@pytest.mark.parametrize(
    "text", ["", "[]", "nonsense", '{"a": "b"}', '{"a": NaN}', '{"a": null}', "[" * 5000]
)
def test_a_damaged_file_begins_all_times_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / "unused.json").write_text(text)
    times = UnusedFile(tmp_path / "unused.json")
    assert times.load() == {}
    times.save({"a": 1.5})
    assert times.load() == {"a": 1.5}
    times.forget()
    times.forget()
    assert times.load() == {}


def test_a_file_that_cannot_be_written_or_removed_is_told(tmp_path: Path) -> None:
    times = UnusedFile(tmp_path / "nowhere" / "unused.json")
    with pytest.raises(UnusedUnwritable):
        times.save({"a": 1.0})
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnusedUnwritable):
        UnusedFile(tmp_path / "folder").forget()


class Layers:
    def __init__(self) -> None:
        self.asked: list[float] = []

    def collect_layers(self, before_s: float) -> int:
        self.asked.append(before_s)
        if len(self.asked) == 1:
            raise Broken("one cannot be removed")
        return 1


async def test_layers_are_collected_again_and_again_and_never_where_it_is_off() -> None:
    layers = Layers()
    await LayerKeeper(layers, None).run()
    assert layers.asked == []
    async with anyio.create_task_group() as group:
        group.start_soon(LayerKeeper(layers, LayerConfig(0.001, 3600.0), lambda: 10_000.0).run)
        await until(lambda: len(layers.asked) > 2)
        group.cancel_scope.cancel()
    assert set(layers.asked) == {6_400.0}
