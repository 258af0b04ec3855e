"""A pull that kills itself: python -m tests.images.dying_pull FOLDER NAME STEP [COUNT]

With COUNT, when the named STEP has been reached for the COUNTth time. Without, when it is about to take STEP,
of those that are found in the code (see `tests.steps`); without a STEP it lives, and writes them to stdout.
SIGKILL from inside is as sudden as from outside, and hits the instruction that is meant.

Without arguments it does that for each line on stdin, a JSON list of them, in a copy of itself that has all
imported, and tells in a line how that ended.
"""

import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import Final

import anyio

from ramet.images import Catalog, Credentials, ImageLimits, RegistryConfig, parse_reference, steps
from ramet.images.steps import PullStep
from tests.steps import watch_steps

TOUCHING: Final = (
    "ramet.images.catalog",
    "ramet.images.convert",
    "ramet.images.pull_records",
    "ramet.images.record",
    "ramet.images.registry.cache",
    "ramet.images.registry.client",
    "ramet.images.rooted",
    "ramet.images.rootfs",
    "ramet.images.unpack",
    "ramet.store.paths",
)
"""The modules by which a pull changes what lies on the disk."""


async def _pull(folder: Path, name: str, credentials: Credentials | None) -> None:
    catalog = Catalog(folder, ImageLimits(), registries=RegistryConfig())
    await catalog.open()
    async with anyio.create_task_group() as group:
        await group.start(catalog.pulls.run)
        await catalog.pulls.fetch(parse_reference(name), credentials=credentials)
        group.cancel_scope.cancel()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def _die_when_reached(step: PullStep, count: int) -> None:
    left = count

    def reached(found: PullStep) -> None:
        nonlocal left
        left -= found == step
        if left == 0:
            _die()

    setattr(steps, "reached", reached)  # noqa: B010  # A plain assignment is an error to mypy.


def _die_before(step: str) -> None:
    def reached(found: str) -> None:
        if found == step:
            _die()
        if not step:
            print(found, flush=True)

    watch_steps(reached, TOUCHING).begin()


def pull(folder: str, name: str, step: str, *count: str) -> None:
    if count:
        _die_when_reached(PullStep(step), int(count[0]))
    else:
        _die_before(step)
    user = os.environ.get("PULL_AS")
    anyio.run(_pull, Path(folder), name, Credentials(user, "secret") if user else None)


def main() -> None:
    if sys.argv[1:]:
        pull(*sys.argv[1:])
        return
    gc.collect()
    gc.freeze()  # What is shared with the copies need not be looked through by each.
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
            pull(*json.loads(line))
            return
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
