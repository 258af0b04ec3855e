"""`ramet serve`, but it kills itself at a named point: python -m tests.vm.dying_daemon POINT SERVE-ARGUMENTS

SIGKILL from inside is as sudden as from outside, and hits the instruction that is meant.
"""

import functools
import importlib
import inspect
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Literal

from ramet.snapshots import capture

POINTS: dict[str, tuple[str, str, Literal["before", "after"]]] = {
    "journal written": ("ramet.effects.performer", "SitePerformer.mint", "after"),
    "folder made": ("ramet.effects.fork", "prepare_folder", "after"),
    "TAP made": ("ramet.net.network", "Network.attach", "after"),
    "chain drawn together": ("ramet.vmm.qemu.driver", "QemuVm.collapse_disk", "after"),
    "new layer opened": ("ramet.vmm.qemu.driver", "QemuVm.prepare_disk", "after"),
    "memory copied ahead": ("ramet.vmm.qemu.driver", "QemuVm.copy_ahead", "after"),
    "workload frozen": ("ramet.guest.channel", "Channel.freeze", "after"),
    "paused": ("ramet.vmm.qemu.driver", "QemuVm.switch_disk", "before"),
    "disk switched": ("ramet.vmm.qemu.driver", "QemuVm.switch_disk", "after"),
    "devices saved": ("ramet.vmm.qemu.driver", "QemuVm.save_devices", "after"),
    "memory copied": ("ramet.vmm.qemu.driver", "QemuVm.copy_rest", "after"),
    "switch recorded": ("ramet.snapshots.capture", "_Switch.settle", "after"),
    "child started": ("ramet.vmm.qemu.driver", "QemuDriver.start_waiting", "after"),
    "child loaded": ("ramet.vmm.qemu.driver", "QemuVm.load", "after"),
    "child identified": ("ramet.effects.fork", "identify_child", "after"),
    "VMM killed": ("ramet.vmm.qemu.driver", "QemuVm.kill", "after"),
    "endpoint released": ("ramet.net.network", "Network.release", "after"),
    "layer released": ("ramet.disks.layers", "LayerStore.release", "after"),
    "folder removed": ("ramet.effects.end", "remove_folder", "after"),
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    signal.pause()


def _dying(function: Callable[..., Any], when: Literal["before", "after"]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def dying_async(*arguments: Any, **named: Any) -> Any:
            if when == "after":
                await function(*arguments, **named)
            die()

        return dying_async

    @functools.wraps(function)
    def dying(*arguments: Any, **named: Any) -> Any:
        if when == "after":
            function(*arguments, **named)
        die()

    return dying


def main() -> None:
    module_name, path, when = POINTS[sys.argv.pop(1)]
    owner: Any = importlib.import_module(module_name)
    *classes, name = path.split(".")
    for part in classes:
        owner = getattr(owner, part)
    importlib.import_module("ramet.daemon.main")  # So that all who import the original by name have done so.
    setattr(owner, name, _dying(getattr(owner, name), when))
    if path == "QemuVm.collapse_disk":
        setattr(capture, "CHAIN_LENGTH_MAX", 1)  # noqa: B010  # Other modules see it as a constant.
    from ramet.cli.main import main as ramet

    ramet()


if __name__ == "__main__":
    main()
