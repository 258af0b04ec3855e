"""The commands that have snapshots be taken by schedule."""

import click

from ramet.cli.options import connect, json_option, tag_option
from ramet.cli.output import print_json
from ramet.wire_api.schedules import ScheduleRetention, SetSnapshotSchedule, SnapshotSchedule


@click.group("schedule")
def schedule_command() -> None:
    """Have snapshots of an instance be taken again and again, and the old ones removed."""


@schedule_command.command("set")
@click.argument("instance")
@click.option("--interval", required=True, metavar="DURATION", help="How often: 1m at least, as 6h.")
@click.option("--max-count", type=click.IntRange(0), help="Keep so many of the newest; 0: any number.")
@click.option("--max-age", metavar="DURATION", help="Keep none that is older; 0: any age.")
@click.option(
    "--name-prefix", help="What their names begin with, before the time: 47 characters at most.  [scheduled]"
)
@tag_option("Tag the snapshots; can be given several times.")
@json_option
@click.pass_context
def set_command(
    context: click.Context,
    instance: str,
    interval: str,
    max_count: int | None,
    max_age: str | None,
    name_prefix: str | None,
    tags: dict[str, str],
    as_json: bool,
) -> None:
    """Have snapshots of INSTANCE be taken at an interval, in the place of any schedule it has.

    One of --max-count and --max-age is needed. Only snapshots that the schedule has taken are removed.
    """
    retention = ScheduleRetention(max_count, max_age)
    body = SetSnapshotSchedule(interval, retention, tags or None, name_prefix)
    _print(connect(context).set_snapshot_schedule(instance, body), as_json=as_json)


@schedule_command.command("show")
@click.argument("instance")
@json_option
@click.pass_context
def show_command(context: click.Context, instance: str, as_json: bool) -> None:
    """Show the schedule of INSTANCE, when it runs next, and what came of the last run."""
    _print(connect(context).get_snapshot_schedule(instance), as_json=as_json)


@schedule_command.command("rm")
@click.argument("instance")
@click.pass_context
def rm_command(context: click.Context, instance: str) -> None:
    """Take no more snapshots of INSTANCE by schedule; those there are stay."""
    connect(context).delete_snapshot_schedule(instance)
    click.echo(instance)


def _print(schedule: SnapshotSchedule, *, as_json: bool) -> None:
    if as_json:
        print_json(schedule)
        return
    retention = schedule.retention
    kept = [f"the {retention.max_count} newest"] if retention.max_count else []
    kept += [f"none older than {retention.max_age}"] if retention.max_age else []
    click.echo(f"every      {schedule.interval}")
    click.echo(f"kept       {', '.join(kept)}")
    click.echo(f"next run   {schedule.next_run_at}")
    click.echo(f"last run   {schedule.last_run_at or '-'}")
    click.echo(f"snapshot   {schedule.last_snapshot_id or '-'}")
    if schedule.last_error:
        click.echo(f"error      {schedule.last_error}")
