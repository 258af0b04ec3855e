"""Following a pull: bars on a terminal, a line for each change elsewhere."""

import sys
import time
from typing import Final

import click

from ramet.cli.output import human_size
from ramet.client import Client
from ramet.core.errors import Broken
from ramet.wire_api.images import Image, PullImage

POLL_INTERVAL_S: Final = 0.2


class PullFailed(Broken):
    """The server could not pull an image."""

    code = "pull_failed"


def pull(client: Client, body: PullImage, *, quiet: bool = False) -> Image:
    """Pull an image, show on stderr how far it is, and return it when it is ready.

    Raises:
        PullFailed: the server gave up.
        RametError: as `Client.pull_image`.
    """
    image = client.pull_image(body)
    if image.status == "ready":
        return image
    ref = f"{image.name.partition('@')[0]}@{image.digest}"
    show = _silent if quiet else _Bar() if sys.stderr.isatty() else _Lines()
    try:
        while image.status not in ("ready", "failed"):
            show(image)
            time.sleep(POLL_INTERVAL_S)
            image = client.get_image(ref)
    finally:
        if isinstance(show, _Bar):
            show.close()
    if image.status == "failed":
        raise PullFailed(
            f"{body.name} could not be pulled: {image.error}", remedy=f"try again: ramet pull {body.name}"
        )
    return image


def _silent(image: Image) -> None:
    """Show nothing."""


class _Lines:
    def __init__(self) -> None:
        self._said = ""

    def __call__(self, image: Image) -> None:
        progress = image.progress
        layers = f" {progress.layers_done}/{progress.layers_total} layers" if progress is not None else ""
        said = f"{image.name}: {image.status}{layers if image.status == 'pulling' else ''}"
        if said != self._said:
            click.echo(said, err=True)
            self._said = said


class _Bar:
    def __init__(self) -> None:
        from rich.console import Console  # Dear to import, and few commands show one.
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("", total=None)
        self._progress.start()

    def __call__(self, image: Image) -> None:
        found = image.progress
        size = human_size(found.bytes_total) if found is not None else ""
        queue = f", number {image.queue_position} in line" if image.queue_position else ""
        self._progress.update(
            self._task,
            description=f"{image.name.rpartition('/')[2]} {image.status} {size}{queue}",
            total=found.bytes_total if found is not None and found.bytes_total else None,
            completed=found.bytes_done if found is not None else 0,
        )

    def close(self) -> None:
        self._progress.stop()
