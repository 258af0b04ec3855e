"""The snapshot commands."""

import click

from ramet.cli.forking import check_many, check_one, children_options, print_child, print_children, print_pool
from ramet.cli.names import invent_name
from ramet.cli.options import compression_option, connect, json_option, tag_option, target_option
from ramet.cli.output import SHORT_ID_LENGTH, age, for_each, human_size, print_json, print_table
from ramet.cli.snapshot_files import export_command, import_command
from ramet.cli.snapshot_schedules import schedule_command
from ramet.core.errors import Broken
from ramet.wire_api.compression import SnapshotCompression
from ramet.wire_api.snapshots import CreateSnapshot, Snapshot, VerifiedPart


class SnapshotDamaged(Broken):
    """A snapshot is not what was stored any more."""

    code = "snapshot_damaged"


_DEFAULT_TARGET = "Running if it holds memory, Stopped if not"


@click.group("snapshot")
def snapshot_command() -> None:
    """Take, schedule, list, fork, go back to, verify, export, import and remove named snapshots.

    SNAPSHOT is an id, a unique beginning of one, or a name that only one snapshot has.
    """


@snapshot_command.command("create")
@click.argument("instance")
@click.option("--name", help="What to call it; unique among the snapshots of the instance.")
@click.option(
    "--kind",
    type=click.Choice(["Standby", "Stopped"], case_sensitive=False),
    help="Standby: memory and disk, of an instance that runs or sleeps. Stopped: the disk of a stopped one."
    " By default what the instance's state allows.",
)
@compression_option("How its memory is compressed afterwards; by default as instance or server say.")
@click.option(
    "--fork-pool", type=click.IntRange(0), help="Make so many children ahead, see ramet snapshot pool."
)
@tag_option("Tag the snapshot; can be given several times.")
@json_option
@click.pass_context
def create_command(
    context: click.Context,
    instance: str,
    name: str | None,
    kind: str | None,
    compression: SnapshotCompression | None,
    fork_pool: int | None,
    tags: dict[str, str],
    as_json: bool,
) -> None:
    """Take a snapshot of INSTANCE, which goes on; print its id when it is durable."""
    client = connect(context)
    if kind is None:
        kind = "Stopped" if client.get(instance).state == "Stopped" else "Standby"
    made = client.create_snapshot(instance, CreateSnapshot(kind, name, tags or None, compression, fork_pool))
    if as_json:
        print_json(made)
    else:
        click.echo(made.id)


@snapshot_command.command("ls")
@click.option("--instance", help="Those of this instance only, by id or name, also when it is gone.")
@click.option(
    "--kind", type=click.Choice(["Standby", "Stopped"], case_sensitive=False), help="Those of this kind only."
)
@click.option("--name", help="Those of this name only.")
@tag_option("Those with this tag only; can be given several times.")
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@json_option
@click.pass_context
def ls_command(
    context: click.Context,
    instance: str | None,
    kind: str | None,
    name: str | None,
    tags: dict[str, str],
    quiet: bool,
    as_json: bool,
) -> None:
    """List snapshots, oldest first."""
    found = connect(context).snapshots(source=instance, kind=kind, name=name, tags=tags)
    if as_json:
        print_json(found)
    elif quiet:
        for snapshot in found:
            click.echo(snapshot.id)
    else:
        print_table(("NAME", "ID", "KIND", "INSTANCE", "SIZE", "CREATED"), [_row(item) for item in found])


@snapshot_command.command("inspect")
@click.argument("snapshot")
@click.pass_context
def inspect_command(context: click.Context, snapshot: str) -> None:
    """Show all there is to know about a snapshot, as JSON."""
    print_json(connect(context).get_snapshot(snapshot))


@snapshot_command.command("fork")
@click.argument("snapshot")
@children_options
@target_option(_DEFAULT_TARGET)
@json_option
@click.pass_context
def fork_command(
    context: click.Context,
    snapshot: str,
    name: str | None,
    count: int | None,
    name_prefix: str | None,
    target: str | None,
    as_json: bool,
) -> int:
    """Make an instance of SNAPSHOT, which stays; print the instance's id."""
    client = connect(context)
    if count is None:
        check_one(name_prefix)
        child = client.fork_snapshot(snapshot, name or invent_name(), target_state=target)
        print_child(child, as_json=as_json)
        return 0
    prefix = check_many(name, name_prefix, lambda: client.get_snapshot(snapshot).source_instance_name)
    result = client.fork_snapshot_many(snapshot, count, prefix, target_state=target)
    return print_children(result, as_json=as_json)


@snapshot_command.command("pool")
@click.argument("snapshot")
@click.argument("size", type=click.IntRange(0), required=False)
@json_option
@click.pass_context
def pool_command(context: click.Context, snapshot: str, size: int | None, as_json: bool) -> None:
    """Have SIZE children of SNAPSHOT made ahead of its next forks; print how full that pool is.

    As `ramet pool` does of an instance, but nothing is thrown away: what waits can become a child any time.
    """
    client = connect(context)
    found = client.get_snapshot(snapshot) if size is None else client.set_snapshot_fork_pool(snapshot, size)
    if as_json:
        print_json(found)
    else:
        print_pool(found.name or found.id[:SHORT_ID_LENGTH], found.fork_pool)


@snapshot_command.command("restore")
@click.argument("instance")
@click.argument("snapshot")
@target_option(_DEFAULT_TARGET)
@json_option
@click.pass_context
def restore_command(
    context: click.Context, instance: str, snapshot: str, target: str | None, as_json: bool
) -> None:
    """Put INSTANCE, which must not run, back to its snapshot SNAPSHOT; print the instance's id.

    What it has done since is lost. Its id, name and address stay.
    """
    print_child(connect(context).restore_snapshot(instance, snapshot, target_state=target), as_json=as_json)


@snapshot_command.command("verify")
@click.argument("snapshot")
@json_option
@click.pass_context
def verify_command(context: click.Context, snapshot: str, as_json: bool) -> None:
    """Read SNAPSHOT to its end and compare it with its checksums; exit with 1 if it is damaged.

    Its checksums are made soon after it was taken; one that has none yet gets them now, and PROOF is
    then "readable".
    """
    found = connect(context).verify_snapshot(snapshot)
    if as_json:
        print_json(found)
    else:
        print_table(("PART", "FILE", "READ", "PROOF", "FOUND"), [_part_row(part) for part in found.parts])
    broken = next((part for part in found.parts if not part.ok), None)
    if broken is not None:
        place = "" if broken.chunk is None else f", from byte {broken.chunk * found.chunk_bytes} on"
        raise SnapshotDamaged(
            f"the {broken.part} of snapshot {snapshot} is damaged: {broken.file}{place}: {broken.error}",
            remedy="import it from a file that was exported before, or delete it: ramet snapshot rm SNAPSHOT",
        )


snapshot_command.add_command(export_command)
snapshot_command.add_command(import_command)
snapshot_command.add_command(schedule_command)


@snapshot_command.command("rm")
@click.argument("snapshots", nargs=-1, required=True)
@click.pass_context
def rm_command(context: click.Context, snapshots: tuple[str, ...]) -> int:
    """Remove snapshots; instances that were made of them stay."""
    client = connect(context)

    def remove(ref: str) -> None:
        client.delete_snapshot(ref)
        click.echo(ref)

    return for_each(snapshots, remove)


def _part_row(part: VerifiedPart) -> tuple[str, ...]:
    verdict = "whole" if part.ok else str(part.error)
    if part.chunk is not None:
        verdict += f", chunk {part.chunk}"
    return part.part, part.file, human_size(part.size_bytes), part.proof, verdict


def _row(snapshot: Snapshot) -> tuple[str, ...]:
    return (
        snapshot.name or "-",
        snapshot.id[:SHORT_ID_LENGTH],
        snapshot.kind,
        snapshot.source_instance_name,
        human_size(snapshot.size_bytes),
        age(snapshot.created_at),
    )
