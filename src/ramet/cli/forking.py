"""The command that this is all for: fork."""

import click

from ramet.cli.names import invent_name
from ramet.cli.options import connect, json_option
from ramet.cli.output import SHORT_ID_LENGTH, print_json, print_table
from ramet.wire_api.instances import FORK_COUNT_MAX, ForkResult


@click.command("fork")
@click.argument("source")
@click.argument("name", required=False)
@click.option("--count", type=click.IntRange(1, FORK_COUNT_MAX), help="Make so many at once.")
@click.option("--name-prefix", help="Call them PREFIX-1, PREFIX-2 and so on; by default after the source.")
@json_option
@click.pass_context
def fork_command(
    context: click.Context,
    source: str,
    name: str | None,
    count: int | None,
    name_prefix: str | None,
    as_json: bool,
) -> int:
    """Fork the running instance SOURCE, which goes on running; print the id of the child.

    Memory, processes and disk of the child are the source's; its name, addresses and identity are its own.
    """
    client = connect(context)
    if count is None:
        if name_prefix is not None:
            raise click.UsageError("--name-prefix needs --count.")
        child = client.fork(source, name or invent_name())
        if as_json:
            print_json(child)
        else:
            click.echo(child.id)
        return 0
    if name is not None:
        raise click.UsageError("NAME is for one fork; with --count use --name-prefix.")
    result = client.fork_many(source, count, name_prefix or client.get(source).name)
    if as_json:
        print_json(result)
    else:
        print_table(("NAME", "ID", "IP", "TOOK", "ERROR"), [_row(fork) for fork in result.forks])
    return 0 if result.succeeded == count else 1


def _row(fork: ForkResult) -> tuple[str, ...]:
    total_ms = (fork.timings_ms or {}).get("total")
    took = "-" if total_ms is None else f"{total_ms:.0f} ms"
    if fork.instance is None:
        return (fork.name, "-", "-", took, fork.error.message if fork.error is not None else "unknown")
    network = fork.instance.network
    ip = network.ip if network is not None else None
    return (fork.name, fork.instance.id[:SHORT_ID_LENGTH], ip or "-", took, "")
