"""The command that takes memory back from guests."""

import click

from ramet.cli.options import connect, json_option
from ramet.cli.output import human_size, print_json, print_table
from ramet.core.units import parse_size
from ramet.wire_api.reclaim import ReclaimAction, ReclaimMemory


@click.command("reclaim")
@click.argument("amount")
@click.option("--hold-for", metavar="DURATION", help="How long guests are to do without it.  [5m]")
@click.option("--dry-run", is_flag=True, help="Only show what would be asked for.")
@click.option("--reason", help="Why, for the log: 256 characters at most.")
@json_option
@click.pass_context
def reclaim_command(
    context: click.Context,
    amount: str,
    hold_for: str | None,
    dry_run: bool,
    reason: str | None,
    as_json: bool,
) -> None:
    """Have running guests give AMOUNT of memory, such as 2GB, back to the host for a while.

    It counts what they give in all, in the place of an earlier request; 0 lets them have everything again.
    Each keeps half of its memory, and 512 MB at least, unless the settings say otherwise.
    """
    body = ReclaimMemory(parse_size(amount), hold_for, dry_run or None, reason)
    found = connect(context).reclaim_memory(body)
    if as_json:
        print_json(found)
        return
    heads = ("INSTANCE", "MEMORY", "FLOOR", "BEFORE", "PLANNED", "NOW", "STATUS")
    if found.actions:
        print_table(heads, [_row(action) for action in found.actions])
        click.echo()
    click.echo(f"planned     {human_size(found.planned_reclaim_bytes)}")
    click.echo(f"applied     {human_size(found.applied_reclaim_bytes)}")
    click.echo(f"until       {found.hold_until or '-'}")
    click.echo(f"available   {human_size(found.host_available_bytes)}, {found.host_pressure_state}")


def _row(action: ReclaimAction) -> tuple[str, ...]:
    sizes = (
        action.assigned_memory_bytes,
        action.protected_floor_bytes,
        action.previous_target_guest_memory_bytes,
        action.planned_target_guest_memory_bytes,
        action.target_guest_memory_bytes,
    )
    status = action.status if action.error is None else f"{action.status}: {action.error}"
    return (action.instance_name, *(human_size(size) for size in sizes), status)
