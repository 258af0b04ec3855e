"""What goes to the server or comes from it, and how far it is: a bar on a terminal, nothing elsewhere."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

from ramet.client.host_files import about, printable

STREAM: Final = "-"
"""What stands for stdin or stdout where a file is named."""
_CHUNK_BYTES: Final = 256 << 10


@contextmanager
def shown(
    chunks: Iterator[bytes], description: str, total_bytes: int | None, *, quiet: bool
) -> Iterator[Iterator[bytes]]:
    """Give `chunks` out, and show on stderr how many bytes have gone by.

    Args:
        total_bytes: how many there will be, about; None if nobody can know.
        quiet: show nothing, as where stderr is no terminal.
    """
    if quiet or not sys.stderr.isatty():
        yield chunks
        return
    from rich.console import Console  # Dear to import, and of no use to scripts.
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(escape(description), total=total_bytes)

        def counted() -> Iterator[bytes]:
            for chunk in chunks:
                progress.advance(task, len(chunk))
                yield chunk

        yield counted()
        progress.update(task, total=progress.tasks[0].completed)  # A bar that is full, whatever was expected.


@contextmanager
def sent(file: str, what: str, *, quiet: bool) -> Iterator[Iterator[bytes]]:
    """Give the bytes of `file` out, or of stdin, and show how far they are. `what` they are: "a snapshot"."""
    if file == STREAM and sys.stdin.isatty():
        raise click.UsageError(f"{what.capitalize()} does not come from a terminal; redirect stdin: <FILE")
    with about(file):
        fd = sys.stdin.fileno() if file == STREAM else os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        total_bytes = None if file == STREAM else os.fstat(fd).st_size
        with shown(_read(fd, file), printable(file), total_bytes, quiet=quiet) as stream:
            yield stream
    finally:
        if file != STREAM:
            os.close(fd)


def _read(fd: int, file: str) -> Iterator[bytes]:
    with about(file):
        while data := os.read(fd, _CHUNK_BYTES):
            yield data
