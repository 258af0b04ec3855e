"""The commands on instances that sleep by themselves."""

import click

from ramet.cli.options import connect, json_option
from ramet.cli.output import print_json
from ramet.wire_api.auto_standby import AutoStandbyStatus


@click.group("auto-standby")
def auto_standby_command() -> None:
    """See how far instances are from sleeping by themselves, and hold them awake."""


@auto_standby_command.command("show")
@click.argument("name")
@json_option
@click.pass_context
def show_command(context: click.Context, name: str, as_json: bool) -> None:
    """Show how far the instance NAME is from sleeping by itself, why, and whether traffic wakes it."""
    _print(connect(context).auto_standby_status(name), as_json=as_json)


@auto_standby_command.command("hold")
@click.argument("name")
@json_option
@click.pass_context
def hold_command(context: click.Context, name: str, as_json: bool) -> None:
    """Have the instance NAME be awake for one idle time-out from now: time to connect to it.

    Fails if it sleeps, or is about to.
    """
    _print(connect(context).hold_auto_standby(name), as_json=as_json)


def _print(found: AutoStandbyStatus, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    wakes = "no" if not found.wake_on_traffic else "yes, waiting for it" if found.wake_armed else "yes"
    click.echo(f"status           {found.status} ({found.reason})")
    click.echo(f"idle time-out    {found.idle_timeout or '-'}")
    click.echo(f"connections      {found.active_inbound_connections}")
    click.echo(f"sleeps in        {found.countdown_remaining or '-'}")
    click.echo(f"held until       {found.hold_until or '-'}")
    click.echo(f"traffic wakes    {wakes}")
    if found.wake_error is not None:
        click.echo(f"not woken        {found.wake_error}")
