"""The commands that show how full the host is, and what an instance uses of it."""

import click

from ramet.cli.options import connect, json_option
from ramet.cli.output import human_size, print_json, print_table
from ramet.wire_api.resources import ResourceAllocation, ResourceStatus

_HEADS = ("RESOURCE", "CAPACITY", "RATIO", "LIMIT", "ALLOCATED", "AVAILABLE")


@click.command("resources")
@click.option("-i", "--instances", "show_instances", is_flag=True, help="Also show what each instance holds.")
@json_option
@click.pass_context
def resources_command(context: click.Context, show_instances: bool, as_json: bool) -> None:
    """Show how full the host is: processors, memory, disk, network."""
    found = connect(context).resources()
    if as_json:
        print_json(found)
        return
    lines = (found.cpu, found.memory, found.disk, found.network, found.disk_io, found.endpoints)
    print_table(_HEADS, [_row(line) for line in lines])
    use = found.disk_breakdown
    click.echo()
    click.echo(f"captures in memory   {found.captures.count}, {human_size(found.captures.memory_bytes)}")
    click.echo(f"TAPs                 {found.taps}")
    click.echo(
        f"on disk              images {human_size(use.images_bytes)}, pulled layers"
        f" {human_size(use.oci_cache_bytes)}, volumes {human_size(use.volumes_bytes)},"
        f" overlays {human_size(use.overlays_bytes)}"
    )
    if show_instances and found.allocations:
        click.echo()
        print_table(
            ("INSTANCE", "CPU", "MEMORY", "DISK"), [_instance_row(each) for each in found.allocations]
        )


@click.command("stats")
@click.argument("name")
@json_option
@click.pass_context
def stats_command(context: click.Context, name: str, as_json: bool) -> None:
    """Show what the instance NAME uses of the host, by its VMM's process and its network interface."""
    found = connect(context).stats(name)
    if as_json:
        print_json(found)
        return
    ratio = found.memory_utilization_ratio
    share = "" if ratio is None else f", {ratio:.0%}"
    click.echo(f"cpu        {found.cpu_seconds:.1f} s, {found.allocated_vcpus} vCPUs")
    resident, allocated = human_size(found.memory_rss_bytes), human_size(found.allocated_memory_bytes)
    click.echo(f"memory     {resident} of {allocated}{share}")
    click.echo(f"received   {human_size(found.network_rx_bytes)}")
    click.echo(f"sent       {human_size(found.network_tx_bytes)}")


def _row(line: ResourceStatus) -> tuple[str, ...]:
    if line.source == "unknown":
        return line.type, "unknown", "-", "none", _amount(line.type, line.allocated), "-"
    shown = (_amount(line.type, each) for each in (line.effective_limit, line.allocated, line.available))
    return line.type, _amount(line.type, line.capacity), f"{line.oversub_ratio:g}", *shown


def _instance_row(held: ResourceAllocation) -> tuple[str, ...]:
    return held.instance_name, str(held.cpu), human_size(held.memory_bytes), human_size(held.disk_bytes)


def _amount(kind: str, amount: int) -> str:
    match kind:
        case "cpu" | "endpoints":
            return str(amount)
        case "network":
            return f"{amount * 8 / 1e6:g}Mbit/s"
        case "disk_io":
            return f"{amount / 1e6:g}MB/s"
        case _:
            return human_size(amount)
