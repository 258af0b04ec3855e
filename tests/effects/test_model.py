"""Ten thousand random operations, with random failures of every port call: no leak, nothing held twice.

Each part of them is a process of its own (`tests.effects.model`), so a failure names the seed to begin again
with. A seed says what is done, not in which order things that happen at once come to an end: so a failure
that does not come again in `REPEATS` more runs of its seed is a bug to be found by soaking the model, and is
warned of with its trace, but it says nothing about the change at hand. What the model would overlook is
tried, too: each deliberate mistake is found.
"""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from tests.effects.model_mutations import KEPT_MUTATIONS, MUTATIONS

pytestmark = pytest.mark.netns

ROOT = Path(__file__).parents[2]
SEEDS = range(20)
STEPS = 500
REPEATS = 2
TIMEOUT_S = 900
TRACE_CHARS_MAX = 20_000
MUTANT_STEPS = 1000
SEEDS_PER_MUTANT = 3
KEPT_SEEDS = range(2)
KEPT_STEPS = 150
KEPT_MUTANT_SEED = 2
"""The first of those that find what a daemon keeps to wrongly: it finds most of it soon."""


def run_model(seed: int, steps: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.effects.model", "--seed", str(seed), "--steps", str(steps)]
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )


@pytest.mark.filterwarnings("default:seed")
@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_fails_the_host_is_as_its_records_say(seed: int) -> None:
    check_seed(seed, STEPS)


@pytest.mark.filterwarnings("default:seed")
@pytest.mark.parametrize("seed", KEPT_SEEDS)
def test_whatever_fails_a_daemon_keeps_to_volumes_restarts_and_schedules(seed: int) -> None:
    check_seed(seed, KEPT_STEPS, "--keep")


def check_seed(seed: int, steps: int, *arguments: str) -> None:
    done = run_model(seed, steps, *arguments)
    if done.returncode:
        warnings.warn(f"seed {seed}, once: {done.stdout[-TRACE_CHARS_MAX:]}{done.stderr}", stacklevel=1)
        for _ in range(REPEATS):
            done = run_model(seed, steps, *arguments)
            assert done.returncode == 0, done.stdout[-TRACE_CHARS_MAX:] + done.stderr
    assert int(done.stdout.split()[2]) >= steps, done.stdout


@pytest.mark.parametrize("mutation", [*MUTATIONS, *KEPT_MUTATIONS])
def test_a_mistake_is_found(mutation: str) -> None:
    first, keeping = (KEPT_MUTANT_SEED, ["--keep"]) if mutation in KEPT_MUTATIONS else (0, [])
    for seed in range(first, first + SEEDS_PER_MUTANT):
        done = run_model(seed, MUTANT_STEPS, "--mutate", mutation, *keeping)
        if done.returncode:
            assert "Violation" in done.stdout, done.stdout[-TRACE_CHARS_MAX:] + done.stderr
            return
    pytest.fail(f"{mutation} was not found in {SEEDS_PER_MUTANT} x {MUTANT_STEPS} steps")
