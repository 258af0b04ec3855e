"""An instance's logs: files that the VMM appends to, bounded by us in place.

| source | file | written by |
|---|---|---|
| app | output.log | the workload, over virtio |
| vmm | console.log, then vmm.log | the guest's kernel; the VMM itself |
"""

import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import anyio
from anyio import to_thread

LOG_BYTES_MAX: Final = 16 << 20
LOG_BYTES_KEPT: Final = 4 << 20
CHECK_INTERVAL_S: Final = 1.0
FOLLOW_INTERVAL_S: Final = 0.2
_READ_BYTES: Final = 256 << 10
_FILES: Final = {"app": ("output.log",), "vmm": ("console.log", "vmm.log"), "hypeman": ("vmm.log",)}


async def read_logs(
    folder: Path, source: str, tail: int, *, follow: bool, is_alive: Callable[[], bool]
) -> AsyncIterator[str]:
    """Yield the last `tail` lines and, with `follow`, those to come while `is_alive`."""
    names = _FILES[source]
    for name in names[:-1]:
        lines, _ = await to_thread.run_sync(_read_tail, folder / name, tail)
        for line in lines:
            yield line
    lines, position = await to_thread.run_sync(_read_tail, folder / names[-1], tail)
    for line in lines:
        yield line
    rest = b""
    while follow:
        alive = is_alive()
        data, position = await to_thread.run_sync(_read_from, folder / names[-1], position)
        if data:
            *whole, rest = (rest + data).split(b"\n")
            for raw in whole:
                yield _text(raw)
        elif not alive:
            break
        else:
            await anyio.sleep(FOLLOW_INTERVAL_S)
    if rest:
        yield _text(rest)


def _read_tail(path: Path, tail: int) -> tuple[list[str], int]:
    try:
        with path.open("rb") as file:
            position = end = os.fstat(file.fileno()).st_size
            data = b""
            while position > 0 and data.count(b"\n") <= tail:
                step = min(_READ_BYTES, position)
                position -= step
                file.seek(position)
                data = file.read(step) + data
    except FileNotFoundError:
        return [], 0
    lines = data.split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    return [_text(raw) for raw in lines[-tail:]] if tail > 0 else [], end


def _read_from(path: Path, position: int) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < position:
                position = 0  # It was cut meanwhile.
            file.seek(position)
            data = file.read(_READ_BYTES)
            return data, position + len(data)
    except FileNotFoundError:
        return b"", 0


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\r").decode(errors="replace")


def bound_logs(folder: Path) -> list[Path]:
    """Cut every log under the instances' `folder` that has grown too long; returns those that were cut.

    The VMM has the file open for appending, so it is cut in place: the newest part is written to the
    front and the rest dropped. What is appended in between is lost with it.
    """
    cut = []
    for path in folder.glob("*/*.log"):
        try:
            if path.stat().st_size > LOG_BYTES_MAX:
                _cut(path)
                cut.append(path)
        except FileNotFoundError:
            continue  # Its instance was deleted while we looked.
    return cut


def _cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-LOG_BYTES_KEPT, os.SEEK_END)
        kept = file.read(LOG_BYTES_KEPT)
        file.truncate(0)
        file.seek(0)
        file.write(kept[kept.find(b"\n") + 1 :])


async def keep_logs_bounded(folder: Path) -> None:
    """Bound the logs of all instances, as long as the daemon lives."""
    while True:
        await to_thread.run_sync(bound_logs, folder)
        await anyio.sleep(CHECK_INTERVAL_S)
