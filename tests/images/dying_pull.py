"""A pull that kills itself at a named step: python -m tests.images.dying_pull FOLDER NAME STEP COUNT

It dies when STEP is reached for the COUNTth time. SIGKILL from inside is as sudden as from outside, and
hits the instruction that is meant.
"""

import os
import signal
import sys
from pathlib import Path

import anyio

from ramet.images import Catalog, Credentials, ImageLimits, RegistryConfig, parse_reference, steps
from ramet.images.steps import PullStep


async def _pull(folder: Path, name: str, credentials: Credentials | None) -> None:
    catalog = Catalog(folder, ImageLimits(), registries=RegistryConfig())
    await catalog.open()
    async with anyio.create_task_group() as group:
        await group.start(catalog.pulls.run)
        await catalog.pulls.fetch(parse_reference(name), credentials=credentials)
        group.cancel_scope.cancel()


def main() -> None:
    folder, name, step, count = sys.argv[1:]
    left = int(count)

    def reached(found: PullStep) -> None:
        nonlocal left
        left -= found == PullStep(step)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()

    setattr(steps, "reached", reached)  # noqa: B010  # A plain assignment is an error to mypy.
    user = os.environ.get("PULL_AS")
    anyio.run(_pull, Path(folder), name, Credentials(user, "secret") if user else None)


if __name__ == "__main__":
    main()
