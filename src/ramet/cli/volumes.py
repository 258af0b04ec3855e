"""The volume commands."""

import click

from ramet.cli.options import connect, json_option, tag_option
from ramet.cli.output import SHORT_ID_LENGTH, age, for_each, print_json, print_table
from ramet.cli.transfer import sent
from ramet.core.volumes import VOLUME_GIB_MAX
from ramet.wire_api.volumes import AttachVolume, CreateVolume, Volume


@click.group("volume")
def volume_command() -> None:
    """Make, list, attach, detach and remove volumes.

    A volume is a disk that outlives instances. One instance may write to it, or many may read it. VOLUME is a
    name, an id or a unique beginning of one.
    """


@volume_command.command("create")
@click.argument("name")
@click.option(
    "--size-gb",
    type=click.IntRange(1, VOLUME_GIB_MAX),
    default=1,
    show_default=True,
    help="How much it may hold; it takes room as it fills.",
)
@click.option("--id", "volume", help="Its id; one is made without.")
@click.option(
    "--from-archive",
    "archive",
    type=click.UNPROCESSED,
    metavar="FILE",
    help="Fill it from a tar archive, plain or packed by gzip or zstd; - is stdin.",
)
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@tag_option("Tag the volume; can be given several times.")
@json_option
@click.pass_context
def create_command(
    context: click.Context,
    name: str,
    size_gb: int,
    volume: str | None,
    archive: str | None,
    quiet: bool,
    tags: dict[str, str],
    as_json: bool,
) -> None:
    """Make a volume called NAME, empty or filled from an archive; print its id."""
    client, body = connect(context), CreateVolume(name, size_gb, volume, tags or None)
    if archive is None:
        made = client.create_volume(body)
    else:
        with sent(archive, "an archive", quiet=quiet) as stream:
            made = client.create_volume_from_archive(body, stream)
    if as_json:
        print_json(made)
    else:
        click.echo(made.id)


@volume_command.command("ls")
@tag_option("Those with this tag only; can be given several times.")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@json_option
@click.pass_context
def ls_command(context: click.Context, tags: dict[str, str], quiet: bool, as_json: bool) -> None:
    """List volumes, oldest first."""
    found = connect(context).volumes(tags)
    if as_json:
        print_json(found)
    elif quiet:
        for volume in found:
            click.echo(volume.id)
    else:
        print_table(("NAME", "ID", "SIZE", "INSTANCES", "CREATED"), [_row(volume) for volume in found])


@volume_command.command("inspect")
@click.argument("volume")
@click.pass_context
def inspect_command(context: click.Context, volume: str) -> None:
    """Show all there is to know about a volume, as JSON."""
    print_json(connect(context).get_volume(volume))


@volume_command.command("attach")
@click.argument("volume")
@click.argument("instance")
@click.argument("path")
@click.option("--readonly", is_flag=True, help="Only read it, as others may at the same time.")
@click.pass_context
def attach_command(context: click.Context, volume: str, instance: str, path: str, readonly: bool) -> None:
    """Have INSTANCE, which is stopped, find VOLUME at PATH from its next start on."""
    body = AttachVolume(path, readonly or None)
    click.echo(connect(context).attach_volume(instance, volume, body).id)


@volume_command.command("detach")
@click.argument("volume")
@click.argument("instance")
@click.pass_context
def detach_command(context: click.Context, volume: str, instance: str) -> None:
    """Have INSTANCE, which is stopped, have VOLUME no more."""
    click.echo(connect(context).detach_volume(instance, volume).id)


@volume_command.command("rm")
@click.argument("volumes", nargs=-1, required=True)
@click.pass_context
def rm_command(context: click.Context, volumes: tuple[str, ...]) -> int:
    """Remove volumes, with all that is in them, that nobody has."""
    client = connect(context)

    def remove(ref: str) -> None:
        client.delete_volume(ref)
        click.echo(ref)

    return for_each(volumes, remove)


def _row(volume: Volume) -> tuple[str, ...]:
    return (
        volume.name,
        volume.id[:SHORT_ID_LENGTH],
        f"{volume.size_gb}GB",
        str(len(volume.attachments)),
        age(volume.created_at),
    )
