"""The commands that bring a snapshot to a file and back."""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress

import click

from ramet.cli.options import connect, json_option
from ramet.cli.output import print_json, write_bytes
from ramet.cli.transfer import STREAM, sent, shown
from ramet.client.host_files import about


@click.command("export")
@click.argument("snapshot")
@click.argument("file", type=click.UNPROCESSED)
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@json_option
@click.pass_context
def export_command(context: click.Context, snapshot: str, file: str, quiet: bool, as_json: bool) -> None:
    """Write SNAPSHOT, which stays, to FILE, or to stdout if that is -; print its id.

    The file holds memory and disk, not the image, and can be imported on this host or another.
    """
    if file == STREAM and as_json:
        raise click.UsageError("Both the snapshot and --json would go to stdout; name a file.")
    if file == STREAM and sys.stdout.isatty():
        raise click.UsageError("A snapshot is nothing for a terminal; redirect it: ... - >FILE")
    client = connect(context)
    found = client.get_snapshot(snapshot)
    chunks = client.export_snapshot(found.id)
    with shown(chunks, found.name or found.id, found.size_bytes, quiet=quiet) as stream:
        if file == STREAM:
            for chunk in stream:
                write_bytes(chunk)
            return
        _write_whole(file, stream)
    if as_json:
        print_json(found)
    else:
        click.echo(found.id)


@click.command("import")
@click.argument("file", type=click.UNPROCESSED)
@click.option("--name", help="What to call it; by default as it was called.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@json_option
@click.pass_context
def import_command(context: click.Context, file: str, name: str | None, quiet: bool, as_json: bool) -> None:
    """Make a snapshot of FILE, which a snapshot was exported to, or of stdin if that is -; print its id.

    Its image must be here. Import only what you trust: the hypervisor loads it.
    """
    with sent(file, "a snapshot", quiet=quiet) as stream:
        made = connect(context).import_snapshot(stream, name)
    if as_json:
        print_json(made)
    else:
        click.echo(made.id)


def _write_whole(file: str, chunks: Iterator[bytes]) -> None:
    """Write a file that is there when all of it is; what has its name until then stays.

    What is there already and no file, such as a pipe, is written to as it is.
    """
    target = os.path.realpath(file)
    is_special = os.path.exists(target) and not os.path.isfile(target)
    part = target if is_special else f"{target}.part"
    with about(file):
        # A guest's memory is its owner's to read.
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as opened:
            for chunk in chunks:
                with about(file):
                    opened.write(chunk)
            with about(file):
                opened.flush()
        if not is_special:
            with about(file):
                os.replace(part, target)
    except BaseException:
        if not is_special:
            with suppress(OSError):
                os.unlink(part)
        raise
