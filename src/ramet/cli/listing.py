"""Commands that look at instances: ps, inspect, logs."""

from dataclasses import replace

import click

from ramet.cli.options import connect, json_option, tag_option
from ramet.cli.output import SHORT_ID_LENGTH, age, print_json, print_table
from ramet.wire_api.instances import LOG_TAIL_LINES_DEFAULT, Instance


@click.command("ps")
@click.option(
    "-a", "--all", "show_all", is_flag=True, help="Show instances in every state, not only Running."
)
@click.option("-q", "--quiet", is_flag=True, help="Print ids only.")
@click.option("--state", help="Show instances in this state only, such as Stopped.")
@tag_option("Show instances with this tag only; can be given several times.")
@json_option
@click.pass_context
def ps_command(
    context: click.Context,
    show_all: bool,
    quiet: bool,
    state: str | None,
    tags: dict[str, str],
    as_json: bool,
) -> None:
    """List instances."""
    wanted = state or (None if show_all else "Running")
    found = connect(context).list(wanted, tags)
    if as_json:
        print_json(found)
    elif quiet:
        for instance in found:
            click.echo(instance.id)
    else:
        print_table(("NAME", "ID", "IMAGE", "STATE", "IP", "CREATED"), [_row(instance) for instance in found])


@click.command("inspect")
@click.argument("instance")
@click.option("--show-env", is_flag=True, help="Show the values of environment variables.")
@click.pass_context
def inspect_command(context: click.Context, instance: str, show_env: bool) -> None:
    """Show all there is to know about an instance, as JSON."""
    found = connect(context).get(instance)
    if not show_env and found.env:
        found = replace(found, env=dict.fromkeys(found.env, "***"))
    print_json(found)


@click.command("logs")
@click.argument("instance")
@click.option("-f", "--follow", is_flag=True, help="Go on with new lines as they come.")
@click.option(
    "--tail",
    type=click.IntRange(min=0),
    default=LOG_TAIL_LINES_DEFAULT,
    show_default=True,
    help="How many of the last lines to begin with.",
)
@click.option(
    "-s",
    "--source",
    type=click.Choice(["app", "vmm", "hypeman"]),
    default="app",
    show_default=True,
    help="The workload's output, the VMM's, or what was done to the instance.",
)
@click.pass_context
def logs_command(context: click.Context, instance: str, follow: bool, tail: int, source: str) -> None:
    """Show an instance's log."""
    for line in connect(context).logs(instance, source=source, tail=tail, follow=follow):
        click.echo(line)


def _row(instance: Instance) -> tuple[str, ...]:
    ip = instance.network.ip if instance.network is not None else None
    return (
        instance.name,
        instance.id[:SHORT_ID_LENGTH],
        instance.image,
        _state(instance),
        ip or "-",
        age(instance.created_at),
    )


def _state(instance: Instance) -> str:
    """Return its state, with how it does, if that is known, or how it ended."""
    if instance.exit_code is not None:
        return f"{instance.state} ({instance.exit_code})"
    health = "unknown" if instance.health_status is None else instance.health_status.status
    return instance.state if health in ("disabled", "unknown") else f"{instance.state} ({health})"
