"""The command that this is all for, and what is done ahead of it: fork, pool."""

from collections.abc import Callable

import click

from ramet.cli.names import invent_name
from ramet.cli.options import F, connect, json_option, target_option
from ramet.cli.output import SHORT_ID_LENGTH, print_json, print_table
from ramet.wire_api.instances import FORK_COUNT_MAX, ForkManyResult, ForkResult, Instance
from ramet.wire_api.pools import ForkPool


def children_options(function: F) -> F:
    """Add the argument NAME, and `--count` and `--name-prefix`: how many, and what they are called."""
    prefix = click.option(
        "--name-prefix", help="Call them PREFIX-1, PREFIX-2 and so on; by default after the source."
    )
    count = click.option("--count", type=click.IntRange(1, FORK_COUNT_MAX), help="Make so many at once.")
    return click.argument("name", required=False)(count(prefix(function)))


@click.command("fork")
@click.argument("source")
@children_options
@target_option("the source's")
@json_option
@click.pass_context
def fork_command(
    context: click.Context,
    source: str,
    name: str | None,
    count: int | None,
    name_prefix: str | None,
    target: str | None,
    as_json: bool,
) -> int:
    """Fork the instance SOURCE, which goes on as it is; print the id of the child.

    SOURCE runs, sleeps (Standby) or is stopped. Memory, processes and disk of the child are the source's; its
    name, addresses and identity are its own.
    """
    client = connect(context)
    if count is None:
        check_one(name_prefix)
        print_child(client.fork(source, name or invent_name(), target_state=target), as_json=as_json)
        return 0
    prefix = check_many(name, name_prefix, lambda: client.get(source).name)
    return print_children(client.fork_many(source, count, prefix, target_state=target), as_json=as_json)


@click.command("pool")
@click.argument("instance")
@click.argument("size", type=click.IntRange(0), required=False)
@json_option
@click.pass_context
def pool_command(context: click.Context, instance: str, size: int | None, as_json: bool) -> None:
    """Have SIZE children of INSTANCE made ahead of the next forks; print how full that pool is.

    Their VMMs are started and wait, so that a fork costs only its capture and its waking. Each counts as a
    running instance. They belong to the next capture: forks asked for together share them, what is left over
    is thrown away, and the pool is filled again. 0 ends them. Without SIZE nothing is changed.
    """
    client = connect(context)
    found = client.get(instance) if size is None else client.set_fork_pool(instance, size)
    if as_json:
        print_json(found)
    else:
        print_pool(found.name, found.fork_pool)


def print_pool(name: str, pool: ForkPool | None) -> None:
    """Print how full a pool is, and how it has done."""
    pool = pool or ForkPool(0, 0, 0, 0, resting=False)
    state = "resting" if pool.resting else "filling" if pool.waiting < pool.size else "full"
    row = (name, str(pool.size), str(pool.waiting), str(pool.taken), str(pool.missed))
    print_table(
        ("NAME", "SIZE", "WAITING", "TAKEN", "MISSED", "STATE", "ERROR"),
        [(*row, state if pool.size else "-", pool.error or "")],
    )


def check_one(name_prefix: str | None) -> None:
    """Refuse what makes no sense for one child."""
    if name_prefix is not None:
        raise click.UsageError("--name-prefix needs --count.")


def check_many(name: str | None, name_prefix: str | None, default: Callable[[], str]) -> str:
    """Return what the names of several children begin with; refuse what makes no sense for them."""
    if name is not None:
        raise click.UsageError("NAME is for one fork; with --count use --name-prefix.")
    return name_prefix or default()


def print_child(child: Instance, *, as_json: bool) -> None:
    """Print the id of a child, or all of it."""
    if as_json:
        print_json(child)
    else:
        click.echo(child.id)


def print_children(result: ForkManyResult, *, as_json: bool) -> int:
    """Print what became of each child; return the exit code."""
    if as_json:
        print_json(result)
    else:
        print_table(("NAME", "ID", "STATE", "IP", "TOOK", "ERROR"), [_row(fork) for fork in result.forks])
    return 0 if result.succeeded == len(result.forks) else 1


def _row(fork: ForkResult) -> tuple[str, ...]:
    total_ms = (fork.timings_ms or {}).get("total")
    took = "-" if total_ms is None else f"{total_ms:.0f} ms"
    if fork.instance is None:
        return (fork.name, "-", "-", "-", took, fork.error.message if fork.error is not None else "unknown")
    network = fork.instance.network
    ip = network.ip if network is not None else None
    return (fork.name, fork.instance.id[:SHORT_ID_LENGTH], fork.instance.state, ip or "-", took, "")
