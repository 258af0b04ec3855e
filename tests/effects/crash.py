"""A daemon that is killed (SIGKILL) in the middle of something.

    python -m tests.effects.crash FOLDER IMAGES SCENARIO CALL before|after

"create" dies while it makes `src`; "fork" has `src` and `old`, a child, and dies while it makes another;
"delete" has `src` and dies while it removes it. CALL is one of the port, or "forget": removing a record.
"""

import os
import signal
import sys
from pathlib import Path
from typing import cast

import anyio

from ramet.vmm.fake.faults import Call
from tests.effects.world import Daemon, World


async def main(folder: Path, images: Path, scenario: str, call: str, late: bool) -> None:
    async with World(folder, images).daemon() as daemon:
        if scenario != "create":
            await daemon.fleet.create("src", daemon.spec)
            await daemon.run("src", "set", "who", "src")
        if scenario == "fork":
            await daemon.fleet.fork("src", ["old"])
        arm(daemon, call, late)
        match scenario:
            case "create":
                await daemon.fleet.create("src", daemon.spec)
            case "fork":
                await daemon.fleet.fork("src", ["a"])
            case "delete":
                await daemon.fleet.delete("src")


def arm(daemon: Daemon, call: str, late: bool) -> None:
    if call == "forget":
        daemon.site.database.forget = lambda instance: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    else:
        daemon.faults.die(cast(Call, call), late=late)


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5] == "after")
