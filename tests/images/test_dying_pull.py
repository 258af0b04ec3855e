"""A pull killed at any of its steps is finished by the next process, which nobody has to ask."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from ramet.images import parse_reference, steps
from ramet.images.catalog import Catalog
from ramet.images.errors import PullInterrupted
from ramet.images.pulls import PullStatus
from ramet.images.steps import PullStep
from tests.images.lying_registry import LyingRegistry, lying_registry
from tests.images.pulling import big_blob, catalog_in, fill
from tests.net.namespaces import own_namespace

pytestmark = [pytest.mark.anyio, pytest.mark.netns]

ROOT = Path(__file__).parents[2]
LAYER_COUNT = 2  # Of the image that `fill` makes.
DEATHS = [(step, 1) for step in PullStep] + [(PullStep.LAYER_FETCHED, LAYER_COUNT)]
FETCHED = list(PullStep).index(PullStep.LAYERS_FETCHED)
TIMEOUT_S = 60.0


@pytest.fixture
def registry() -> Iterator[LyingRegistry]:
    with own_namespace(), lying_registry() as found:
        fill(found)
        yield found


def die(folder: Path, name: str, step: PullStep, count: int = 1, **environment: str) -> None:
    """Pull in a process that is killed when it has reached a named step."""
    done = pull_apart(folder, name, step, str(count), **environment)
    assert done.returncode == -signal.SIGKILL, done.stderr


def find_steps(folder: Path, name: str) -> list[str]:
    """Pull in a process that lives, and return the steps it took."""
    done = pull_apart(folder, name, "")
    assert done.returncode == 0, done.stderr
    found = [line for line in done.stdout.splitlines() if re.fullmatch(r"(end of )?[A-Za-z_.]+ \d+", line)]
    # How many pieces a layer comes in is never the same.
    return [step for step in found if step == "Part.add 1" or not step.startswith("Part.add ")]


def pull_apart(folder: Path, name: str, *step: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.images.dying_pull", str(folder), name, *step],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@contextmanager
def many_pulls() -> Iterator[Callable[[Path, str, str], int]]:
    """Return what pulls in a copy of a warm process, which dies before a step, and returns how it ended."""
    command = [sys.executable, "-m", "tests.images.dying_pull"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as warm:

        def pull(folder: Path, name: str, step: str) -> int:
            assert warm.stdin is not None
            assert warm.stdout is not None
            warm.stdin.write(json.dumps([str(folder), name, step]) + "\n")
            warm.stdin.flush()
            return int(warm.stdout.readline())

        yield pull
        warm.communicate()


async def wait_idle(catalog: Catalog) -> None:
    """Wait until no pull is under way any more."""
    with anyio.fail_after(TIMEOUT_S):
        while any(view.status is not PullStatus.FAILED for view in catalog.pulls.list()):  # noqa: ASYNC110
            await anyio.sleep(0.01)


def check_nothing_half_made(folder: Path, content_count: int) -> None:
    for place in ("tmp", "pulls"):
        assert list((folder / place).iterdir()) == []
    assert list((folder / "blobs").glob("*.part")) == []
    made = sorted(path.name for place in (folder / "content").iterdir() for path in place.iterdir())
    assert made == ["image.json", "rootfs.erofs"] * content_count


async def test_a_pull_reaches_all_steps_in_their_order(
    tmp_path: Path, registry: LyingRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached: list[PullStep] = []
    monkeypatch.setattr(steps, "reached", reached.append)
    async with catalog_in(tmp_path / "images") as catalog:
        await catalog.pulls.fetch(parse_reference(f"{registry.authority}/app"))
    assert reached == [step for step in PullStep for _ in range(1 + (step is PullStep.LAYER_FETCHED))]


@pytest.mark.parametrize(("step", "count"), DEATHS)
async def test_a_pull_killed_at_a_step_is_whole_after_the_next_start(
    tmp_path: Path, registry: LyingRegistry, step: PullStep, count: int
) -> None:
    folder, name = tmp_path / "images", f"{registry.authority}/app:latest"
    die(folder, name, step, count)

    async with catalog_in(folder) as catalog:
        await wait_idle(catalog)

        assert catalog.pulls.list() == []
        image = catalog.resolve(name)
        assert (image.config.cmd, image.tags) == (("/big",), (name,))
        assert catalog.list() == [image]
        check_nothing_half_made(folder, content_count=1)
        is_fetched = list(PullStep).index(step) >= FETCHED or count == LAYER_COUNT
        assert len(registry.asked(big_blob(registry))) in ([1] if is_fetched else [1, 2])

        # The name is free: for another pull, for removal, and for a pull after that.
        assert await catalog.pulls.fetch(parse_reference(name)) == image
        await catalog.remove(name, in_use=lambda _: False)
        check_nothing_half_made(folder, content_count=0)
        assert (await catalog.pulls.fetch(parse_reference(name))).digest == image.digest
    check_nothing_half_made(folder, content_count=1)


@pytest.mark.timeout(600)
async def test_a_pull_killed_at_any_step_found_in_the_code_leaves_nothing_half_made_and_blocks_no_name(
    tmp_path: Path, registry: LyingRegistry
) -> None:
    name = f"{registry.authority}/app:latest"
    found = find_steps(tmp_path / "whole", name)
    assert {"PullRecords.save 1", "Part.finish 1", "make_rootfs 1", "PullRecords.remove 1"} <= set(found)
    with many_pulls() as pull:
        for number, step in enumerate(found):
            folder = tmp_path / str(number)
            try:
                assert pull(folder, name, step) == -signal.SIGKILL
                async with catalog_in(folder) as catalog:
                    await wait_idle(catalog)
                    # What had not been written down yet is asked for again; the rest is done without us.
                    image = await catalog.pulls.fetch(parse_reference(name))
                    assert catalog.list() == [image]
                check_nothing_half_made(folder, content_count=1)
            except BaseException as error:
                error.add_note(f"killed before: {step}")
                raise


@pytest.mark.parametrize("step", [PullStep.RESOLVED, PullStep.PUBLISHED])
async def test_a_killed_pull_with_credentials_fails_by_name_and_blocks_nothing(
    tmp_path: Path, registry: LyingRegistry, step: PullStep
) -> None:
    folder, name = tmp_path / "images", f"{registry.authority}/app:latest"
    die(folder, name, step, PULL_AS="me")
    assert b"secret" not in b"".join(path.read_bytes() for path in (folder / "pulls").iterdir())

    async with catalog_in(folder) as catalog:
        await wait_idle(catalog)
        failed = catalog.pulls.find(name)
        assert failed is not None
        assert isinstance(failed.error, PullInterrupted)
        check_nothing_half_made(folder, content_count=len(catalog.list()))
        assert (await catalog.pulls.fetch(parse_reference(name))).tags == (name,)
        assert catalog.pulls.find(name) is None
    check_nothing_half_made(folder, content_count=1)
