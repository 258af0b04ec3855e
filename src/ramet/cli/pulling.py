"""Following a pull: a bar on a terminal, a line for each change elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import click

from ramet.client import Client
from ramet.core.errors import Broken
from ramet.wire_api.images import Image, PullImage

POLL_INTERVAL_S: Final = 0.2

_Show = Callable[[Image], None]


class PullFailed(Broken):
    """The server could not pull an image."""

    code = "pull_failed"


def pull(client: Client, body: PullImage, *, quiet: bool = False) -> Image:
    """Pull an image, show on stderr how far it is, and return it when it is ready.

    Raises:
        PullFailed: the server gave up.
        RametError: as `Client.pull_image`.
    """
    with _shown(body.name, quiet=quiet) as show:
        image = client.pull_image(body)
        ref = f"{image.name.partition('@')[0]}@{image.digest}"
        try:
            while image.status not in ("ready", "failed"):
                show(image)
                time.sleep(POLL_INTERVAL_S)
                image = client.get_image(ref)
        except KeyboardInterrupt:
            click.echo(f"The server goes on pulling {body.name}: ramet image list", err=True)
            raise
        if image.status == "failed":
            raise PullFailed(
                f"{body.name} could not be pulled: {image.error}",
                remedy=f"try again: ramet pull {body.name}",
            )
    return image


@contextmanager
def _shown(name: str, *, quiet: bool) -> Iterator[_Show]:
    """Give what shows an image's state, from before the registry has been asked."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar(name) as show:
            yield show
    else:
        yield _Lines()


class _Lines:
    def __init__(self) -> None:
        self._said = ""

    def __call__(self, image: Image) -> None:
        said = f"{image.name}: {image.status}{_layers(image) if image.status == 'pulling' else ''}"
        if said != self._said:
            click.echo(said, err=True)
            self._said = said


@contextmanager
def _bar(name: str) -> Iterator[_Show]:
    from rich.console import Console  # Dear to import, and few commands show one.
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    # The spinner says that something is done, while the registry is silent or a disk is being made.
    with Progress(SpinnerColumn(), *columns, console=Console(stderr=True)) as progress:
        short = escape(name.rpartition("/")[2])
        task = progress.add_task(f"{short} asking the registry", total=None)

        def show(image: Image) -> None:
            found = image.progress
            queue = f", number {image.queue_position} in line" if image.queue_position else ""
            progress.update(
                task,
                description=f"{short} {image.status}{queue}{_layers(image)}",
                total=found.bytes_total if found is not None and found.bytes_total else None,
                completed=found.bytes_done if found is not None else 0,
            )

        yield show  # Nothing of what follows is done where the pull has failed.
        total_bytes = progress.tasks[0].total
        progress.update(
            task, description=f"{short} ready", completed=total_bytes, visible=total_bytes is not None
        )


def _layers(image: Image) -> str:
    found = image.progress
    if found is None or not found.layers_total:
        return ""
    return f" {found.layers_done}/{found.layers_total} layers"
