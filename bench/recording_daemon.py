"""`ramet serve` that keeps its last capture for the floor: python -m bench.recording_daemon RECORD serve ...

Before the first VMM loads a capture it writes to the file RECORD what a child of it is made of, and it
holds the capture's files open until FORGET comes. Nothing else differs from the daemon that users run.
"""

import json
import os
import shutil
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, NoReturn

from ramet.cli.main import main as ramet
from ramet.vmm.port import Capture, Machine
from ramet.vmm.qemu.driver import QemuDriver, QemuVm

FORGET: Final = signal.SIGUSR1
"""Comes before the next capture and while nobody measures: freeing memory takes the daemon its time."""


@dataclass(frozen=True, slots=True)
class Record:
    """One capture and a child of it; `layers` is the chain below a child's own disk layer, topmost first."""

    memory: str
    devices: str
    board: str
    accelerator: str
    program: str
    vcpu_count: int
    memory_bytes: int
    kernel: str
    initramfs: str
    root: str
    config: str
    layers: list[tuple[str, str]]

    @classmethod
    def load(cls, path: Path) -> "Record":
        """Read the last one written."""
        return cls(**json.loads(path.read_text()))


class _Recorder:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._capture: Capture | None = None
        self._held: list[int] = []
        self._children: dict[Path, tuple[QemuDriver, Machine]] = {}

    def forget(self) -> None:
        """Let go of the last capture."""
        for fd in self._held:
            os.close(fd)
        self._held = []

    def see_started(self, driver: QemuDriver, machine: Machine) -> None:
        """Learn what a VMM that waits for a capture was made of."""
        self._children[machine.folder] = driver, machine

    def see_loading(self, folder: Path, capture: Capture) -> None:
        """Keep a capture, unless it is the last one still."""
        driver, machine = self._children.pop(folder)
        if capture is self._capture:
            return
        self._capture = capture
        self._held = [os.dup(capture.memory.fd), os.dup(capture.devices.fd)]
        config = self._path.with_suffix(".img")
        shutil.copyfile(machine.config, config)
        memory, devices = (f"/proc/{os.getpid()}/fd/{fd}" for fd in self._held)
        record = Record(
            memory=memory,
            devices=devices,
            board=driver.name,
            accelerator=driver.accelerator,
            program=str(driver._program),
            vcpu_count=machine.vcpu_count,
            memory_bytes=machine.memory_bytes,
            kernel=str(machine.kernel),
            initramfs=str(machine.initramfs),
            root=str(machine.root),
            config=str(config),
            layers=[(str(path), form) for path, form in machine.overlay.layers[1:]],
        )
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(asdict(record)))
        part.rename(self._path)


def main() -> NoReturn:
    recorder = _Recorder(Path(sys.argv.pop(1)))
    start_waiting = QemuDriver.start_waiting

    async def start_and_record(driver: QemuDriver, machine: Machine, capture: Capture) -> QemuVm:
        recorder.see_started(driver, machine)
        return await start_waiting(driver, machine, capture)

    load = QemuVm.load

    async def record_and_load(vm: QemuVm, capture: Capture) -> None:
        recorder.see_loading(vm._folder, capture)
        await load(vm, capture)

    signal.signal(FORGET, lambda *_: recorder.forget())
    QemuVm.load = record_and_load  # type: ignore[method-assign,assignment]
    QemuDriver.start_waiting = start_and_record  # type: ignore[method-assign,assignment]
    ramet()


if __name__ == "__main__":
    main()
