"""How far a copy is: a bar on a terminal, nothing elsewhere."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


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
