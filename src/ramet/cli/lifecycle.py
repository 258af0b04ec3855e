"""Commands that make, wait for and end instances: run, wait, start, stop, restart, standby, restore, rm."""

import os
from pathlib import Path
from typing import Final

import click

from ramet.cli.names import invent_name
from ramet.cli.options import (
    command_words,
    compression_delay_option,
    compression_option,
    connect,
    env_option,
    json_option,
    tag_option,
    volume_option,
)
from ramet.cli.output import for_each, print_json
from ramet.cli.pulling import pull
from ramet.cli.supervision import supervision_options
from ramet.client import ApiError, Client
from ramet.core.errors import Broken, Conflict, Invalid
from ramet.wire_api.auto_standby import AutoStandbyPolicy
from ramet.wire_api.compression import SnapshotCompression, SnapshotPolicy
from ramet.wire_api.images import PullImage
from ramet.wire_api.instances import CreateInstance, CreateNetwork, Instance
from ramet.wire_api.snapshots import StandbyInstance
from ramet.wire_api.supervision import HealthCheck, RestartPolicy
from ramet.wire_api.volumes import VolumeMount

_ARCHIVES: Final = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".oci")


class StillRuns(Conflict):
    """An instance to be removed runs."""

    code = "still_runs"


class NoSuchFile(Invalid):
    """An image is named by a path of this host, and there is nothing."""

    code = "image_source_not_found"


class OtherState(Broken):
    """What was waited for did not come."""

    code = "other_state"


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.argument("image")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--name", help="What to call the instance; a name is made up without.")
@click.option("--cpus", type=int, default=2, show_default=True, help="How many virtual processors it has.")
@click.option("--memory", default="1GB", show_default=True, help="Its memory.")
@click.option("--hotplug-memory", help="More, which comes once it has booted; of cloud-hypervisor only.")
@click.option("--overlay-size", default="10GB", show_default=True, help="How much it may write to its disk.")
@env_option
@volume_option
@click.option("--entrypoint", help="Run this instead of the image's entrypoint.")
@click.option(
    "--network/--no-network", "has_network", default=True, show_default=True, help="Give it a network."
)
@click.option("--disk-io", help="How much its disks let through, such as 100MB/s.")
@click.option("--bandwidth-down", help="How much may come to it, such as 20Mbps or 125MB/s.")
@click.option("--bandwidth-up", help="How much it may send.")
@click.option("--skip-guest-agent", is_flag=True, help="Let nobody run commands in it or copy its files.")
@click.option("--hypervisor", help="What runs it; the server has a default.")
@click.option(
    "--fork-pool", type=click.IntRange(0), help="Make so many children ahead of their fork, see ramet pool."
)
@supervision_options
@click.option(
    "--auto-standby",
    metavar="DURATION",
    help="Have it sleep when nobody has been connected to it for so long, such as 5m.",
)
@click.option(
    "--wake-on-traffic", is_flag=True, help="Have a TCP connection wake it, however it came to sleep."
)
@compression_option("How its memory is compressed when it sleeps, and in its snapshots, unless they say.")
@compression_delay_option
@tag_option("Tag the instance; can be given several times.")
@json_option
@click.pass_context
def run_command(
    context: click.Context,
    image: str,
    command: tuple[str, ...],
    name: str | None,
    cpus: int,
    memory: str,
    hotplug_memory: str | None,
    overlay_size: str,
    env: dict[str, str],
    volumes: tuple[VolumeMount, ...],
    entrypoint: str | None,
    has_network: bool,
    disk_io: str | None,
    bandwidth_down: str | None,
    bandwidth_up: str | None,
    skip_guest_agent: bool,
    hypervisor: str | None,
    fork_pool: int | None,
    auto_standby: str | None,
    wake_on_traffic: bool,
    health: HealthCheck | None,
    restart: RestartPolicy | None,
    compression: SnapshotCompression | None,
    compression_delay: str | None,
    tags: dict[str, str],
    as_json: bool,
) -> None:
    """Make an instance of IMAGE and boot it; print its id when it runs.

    IMAGE is the name of an image, which is pulled if it is not on the server, or the path of an OCI layout or
    of an archive, which is imported first. COMMAND replaces the image's. Options stand before IMAGE.

    The instance runs by itself, as with docker run -d. Its output: ramet logs -f; a shell: ramet exec -it.
    """
    client = connect(context)
    if _is_local_image(image):
        image = client.import_image(os.path.abspath(image)).name
    body = CreateInstance(
        name=name or invent_name(),
        image=image,
        size=memory,
        hotplug_size=hotplug_memory,
        overlay_size=overlay_size,
        disk_io_bps=disk_io,
        vcpus=cpus,
        env=env or None,
        volumes=volumes or None,
        entrypoint=None if entrypoint is None else (entrypoint,),
        cmd=command_words(command) or None,
        tags=tags or None,
        network=CreateNetwork(
            enabled=None if has_network else False,
            bandwidth_download=bandwidth_down,
            bandwidth_upload=bandwidth_up,
        ),
        skip_guest_agent=skip_guest_agent or None,
        hypervisor=hypervisor,
        fork_pool=fork_pool,
        auto_standby=_idle(auto_standby, wake_on_traffic=wake_on_traffic),
        health_check=health,
        restart_policy=restart,
        snapshot_policy=_policy(compression, compression_delay),
    )
    made = _create(client, body)
    if as_json:
        print_json(made)
    else:
        click.echo(made.id)


def _idle(timeout: str | None, *, wake_on_traffic: bool) -> AutoStandbyPolicy | None:
    if timeout is None and not wake_on_traffic:
        return None
    return AutoStandbyPolicy(
        enabled=timeout is not None, idle_timeout=timeout, wake_on_traffic=wake_on_traffic or None
    )


def _policy(compression: SnapshotCompression | None, delay: str | None) -> SnapshotPolicy | None:
    return None if compression is None and delay is None else SnapshotPolicy(compression, delay)


def _create(client: Client, body: CreateInstance) -> Instance:
    """Make an instance; an image that is not here is told of, and followed if it takes its time to come."""
    try:
        client.get_image(body.image)
    except ApiError as error:
        if error.error.code == "image_not_found":
            click.echo(f"{body.image} is not on the server; pulling it", err=True)
    try:
        return client.create(body)
    except ApiError as error:
        if error.error.code != "image_not_ready":
            raise
    pull(client, PullImage(body.image))
    return client.create(body)


@click.command("wait")
@click.argument("instance")
@click.option("--state", default="Running", show_default=True, help="The state to wait for.")
@click.option("--timeout", default="60s", show_default=True, help="How long at most; up to 5m.")
@json_option
@click.pass_context
def wait_command(context: click.Context, instance: str, state: str, timeout: str, as_json: bool) -> None:
    """Wait until an instance is in a state; exit with 1 if it is not to be."""
    result = connect(context).wait(instance, state, timeout)
    if as_json:
        print_json(result)
    if result.state != state:
        reason = f": {result.state_error}" if result.state_error else ""
        when = f" after {timeout}" if result.timed_out else ""
        raise OtherState(f"{instance} is {result.state}{when}, not {state}{reason}")


@click.command("start", context_settings={"allow_interspersed_args": False})
@click.argument("instance")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--entrypoint", help="Run this instead of the entrypoint, from now on.")
@json_option
@click.pass_context
def start_command(
    context: click.Context, instance: str, command: tuple[str, ...], entrypoint: str | None, as_json: bool
) -> None:
    """Boot a stopped instance from its disk; print its id when it runs.

    COMMAND, written after --, replaces the instance's from now on. Options stand before INSTANCE.
    """
    started = connect(context).start(
        instance,
        entrypoint=None if entrypoint is None else (entrypoint,),
        cmd=command_words(command) or None,
    )
    if as_json:
        print_json(started)
    else:
        click.echo(started.id)


@click.command("restart")
@click.argument("instances", nargs=-1, required=True)
@json_option
@click.pass_context
def restart_command(context: click.Context, instances: tuple[str, ...], as_json: bool) -> int:
    """Stop instances if they run, and start them from their disks."""
    client = connect(context)
    restarted = []

    def restart(ref: str) -> None:
        if client.get(ref).state != "Stopped":
            client.stop(ref)
        restarted.append(client.start(ref))
        if not as_json:
            click.echo(ref)

    exit_code = for_each(instances, restart)
    if as_json:
        print_json(restarted)
    return exit_code


@click.command("stop")
@click.argument("instances", nargs=-1, required=True)
@json_option
@click.pass_context
def stop_command(context: click.Context, instances: tuple[str, ...], as_json: bool) -> int:
    """Stop instances; their disks stay."""
    client = connect(context)
    stopped = []

    def stop(ref: str) -> None:
        stopped.append(client.stop(ref))
        if not as_json:
            click.echo(ref)

    exit_code = for_each(instances, stop)
    if as_json:
        print_json(stopped)
    return exit_code


@click.command("standby")
@click.argument("instances", nargs=-1, required=True)
@compression_option("How their memory is compressed afterwards; by default as instance or server say.")
@compression_delay_option
@json_option
@click.pass_context
def standby_command(
    context: click.Context,
    instances: tuple[str, ...],
    compression: SnapshotCompression | None,
    compression_delay: str | None,
    as_json: bool,
) -> int:
    """Put running instances to sleep: their memory goes to the disk."""
    client = connect(context)
    body = StandbyInstance(compression, compression_delay)
    asleep = []

    def suspend(ref: str) -> None:
        asleep.append(client.standby(ref, body))
        if not as_json:
            click.echo(ref)

    exit_code = for_each(instances, suspend)
    if as_json:
        print_json(asleep)
    return exit_code


@click.command("restore")
@click.argument("instances", nargs=-1, required=True)
@json_option
@click.pass_context
def restore_command(context: click.Context, instances: tuple[str, ...], as_json: bool) -> int:
    """Wake instances that are in standby; each goes on where it was."""
    client = connect(context)
    awake = []

    def wake(ref: str) -> None:
        awake.append(client.restore(ref))
        if not as_json:
            click.echo(ref)

    exit_code = for_each(instances, wake)
    if as_json:
        print_json(awake)
    return exit_code


@click.command("rm")
@click.argument("instances", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Also those that run.")
@click.pass_context
def rm_command(context: click.Context, instances: tuple[str, ...], force: bool) -> int:
    """Remove instances with all of their data."""
    client = connect(context)

    def remove(ref: str) -> None:
        if not force:
            _check_ended(client, ref)
        client.delete(ref)
        click.echo(ref)

    return for_each(instances, remove)


def _check_ended(client: Client, ref: str) -> None:
    found = client.get(ref)
    if found.state in ("Running", "Initializing", "Paused"):
        raise StillRuns(f"{found.name} is {found.state}", remedy=f"stop it first, or use: ramet rm -f {ref}")


def _is_local_image(text: str) -> bool:
    """Tell whether `text` is a path rather than a name: it exists, and it looks or is built like an image.

    Raises:
        NoSuchFile: it can only be a path, and there is nothing.
    """
    path = Path(text)
    can_only_be_path = text.startswith(("/", "./", "../"))
    if not path.exists():
        if can_only_be_path:
            raise NoSuchFile(f"there is nothing at {text}", remedy="name an image, or a layout or archive")
        return False
    return can_only_be_path or text.endswith(_ARCHIVES) or (path / "oci-layout").is_file()
