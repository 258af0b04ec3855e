"""The image commands."""

import os
import sys
from datetime import datetime

import click

from ramet.cli.options import connect, json_option
from ramet.cli.output import SHORT_ID_LENGTH, age, human_size, print_json, print_table, report
from ramet.cli.pulling import pull
from ramet.core.errors import RametError
from ramet.wire_api.images import Image, PullCredentials, PullImage


@click.group("image")
def image_command() -> None:
    """Add, list and remove images."""


@image_command.command("import")
@click.argument("path", type=click.Path(exists=False))
@click.option("--name", help="What to call the image; by default as it calls itself.")
@json_option
@click.pass_context
def import_command(context: click.Context, path: str, name: str | None, as_json: bool) -> None:
    """Add the image at PATH: an OCI layout, or an archive of one or of docker save.

    PATH is on the server's host.
    """
    image = connect(context).import_image(os.path.abspath(path), name)
    if as_json:
        print_json(image)
    else:
        click.echo(image.name)


@click.command("pull")
@click.argument("ref")
@click.option("--platform", help="Which of an image's platforms; by default the server's.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.option("--username", help="Log in to the registry as this user, for this pull only.")
@click.option("--password-stdin", is_flag=True, help="Read the password from stdin.")
@json_option
@click.pass_context
def pull_command(
    context: click.Context,
    ref: str,
    platform: str | None,
    quiet: bool,
    username: str | None,
    password_stdin: bool,
    as_json: bool,
) -> None:
    """Pull the image REF from its registry, such as debian:12 or registry.example/team/app:1.0.

    A tag is asked for anew each time. What another pull left behind is not downloaded again.
    """
    credentials = _read_credentials(username, password_stdin=password_stdin)
    image = pull(connect(context), PullImage(ref, platform, credentials), quiet=quiet)
    if as_json:
        print_json(image)
    else:
        click.echo(image.digest if quiet else image.name)


def _read_credentials(username: str | None, *, password_stdin: bool) -> PullCredentials | None:
    if username is None:
        if password_stdin:
            raise click.UsageError("A password is somebody's: give --username, too.")
        return None
    if password_stdin:
        return PullCredentials(username, sys.stdin.readline().rstrip("\r\n"))
    if not sys.stdin.isatty():
        raise click.UsageError("Give the password of --username with --password-stdin.")
    return PullCredentials(username, click.prompt("Password", hide_input=True, err=True))


image_command.add_command(pull_command)


@image_command.command("list")
@click.option("-q", "--quiet", is_flag=True, help="Print names only.")
@json_option
@click.pass_context
def list_command(context: click.Context, quiet: bool, as_json: bool) -> None:
    """List images."""
    images = connect(context).images()
    if as_json:
        print_json(images)
    elif quiet:
        for image in images:
            click.echo(image.name)
    else:
        rows = [
            (
                image.name,
                image.digest.partition(":")[2][:SHORT_ID_LENGTH],
                _status(image),
                human_size(image.size_bytes),
                age(image.created_at),
            )
            for image in sorted(images, key=lambda image: datetime.fromisoformat(image.created_at))
        ]
        print_table(("NAME", "DIGEST", "STATUS", "SIZE", "CREATED"), rows)


def _status(image: Image) -> str:
    found = image.progress
    if image.status == "pulling" and found is not None and found.bytes_total:
        return f"pulling {found.bytes_done * 100 // found.bytes_total}%"
    return f"{image.status}: {image.error_code}" if image.error_code else image.status


@image_command.command("rm")
@click.argument("names", nargs=-1, required=True)
@click.pass_context
def rm_command(context: click.Context, names: tuple[str, ...]) -> int:
    """Remove names of images, and with its last name an image."""
    client = connect(context)
    exit_code = 0
    for name in names:
        try:
            client.delete_image(name)
            click.echo(name)
        except RametError as error:
            report(error)
            exit_code = 1
    return exit_code
