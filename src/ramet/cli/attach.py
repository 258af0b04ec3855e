"""The attach command: coming back to what `ramet exec -d` has left running."""

import click

from ramet.cli.exec import pass_through
from ramet.cli.options import connect, json_option
from ramet.cli.output import print_json, print_table
from ramet.client import Client
from ramet.wire_api.exec import ExecOpening


@click.command("attach")
@click.argument("instance")
@click.argument("session", required=False)
@click.option("-i", "--interactive", is_flag=True, help="Pass stdin on to the command.")
@click.option(
    "--since", metavar="BYTES", type=click.IntRange(min=0), default=0, help="Leave out so much of it."
)
@json_option
@click.pass_context
def attach_command(
    context: click.Context, instance: str, session: str | None, interactive: bool, since: int, as_json: bool
) -> int:
    """Show what a command that was left running has written, and writes; exit with its exit code.

    Without SESSION, list the sessions of INSTANCE. Ctrl-C leaves the command running.
    """
    client = connect(context)
    if session is None:
        _list(client, instance, as_json=as_json)
        return 0
    with client.hold_exec(instance, ExecOpening(attach=session, since=since)) as connection:
        if connection.missed_bytes:
            click.echo(f"{connection.missed_bytes} bytes of output are not kept any more", err=True)
        return pass_through(connection, interactive=interactive)


def _list(client: Client, instance: str, *, as_json: bool) -> None:
    found = client.list_execs(instance)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            one.id,
            "running" if one.exit_code is None else f"exited {one.exit_code}",
            "yes" if one.attached else "no",
            str(one.position),
            " ".join(one.command),
        )
        for one in found
    ]
    print_table(("SESSION", "STATUS", "ATTACHED", "BYTES", "COMMAND"), rows)
