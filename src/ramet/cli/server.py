"""Commands about the server: serve, token, version."""

import importlib
import time
from pathlib import Path

import click

from ramet import __version__
from ramet.cli.options import connect, json_option
from ramet.cli.output import print_json
from ramet.client import NotReachable
from ramet.core.errors import Invalid
from ramet.core.units import parse_duration
from ramet.wire_api.scopes import ALGORITHM, SCOPES, SECRET_BYTES_MIN


@click.command("serve")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where everything is kept.")
@click.option("--socket", type=click.Path(path_type=Path), help="The unix socket of the API.")
@click.option("--listen", metavar="HOST:PORT", help="Also serve the API over TCP, with tokens.")
@click.option("--port", type=click.IntRange(1, 65535), help="Short for --listen 127.0.0.1:PORT.")
@click.option("--config", type=click.Path(path_type=Path), help="A file of settings.")
@click.option("--stop-all", is_flag=True, help="Stop all instances when the server ends.")
def serve_command(
    data_dir: Path | None,
    socket: Path | None,
    listen: str | None,
    port: int | None,
    config: Path | None,
    stop_all: bool,
) -> None:
    """Run the server, in the foreground, until SIGINT or SIGTERM. Instances outlive it, unless --stop-all.

    Settings come from these options, then from the environment (RAMET_...), then from the file.
    """
    if listen is not None and port is not None:
        raise click.UsageError("Give --listen or --port, not both.")
    if port is not None:
        listen = f"127.0.0.1:{port}"
    given: dict[str, object] = {"data_dir": data_dir, "socket": socket, "listen": listen, "config": config}
    given["stop_all"] = stop_all or None  # Without the flag, the settings have it.
    # The one place where the command line reaches into the daemon, and only when it becomes one.
    daemon = importlib.import_module("ramet.daemon.main")
    daemon.serve({name: value for name, value in given.items() if value is not None})


@click.command("token")
@click.option("--secret", envvar="RAMET_JWT_SECRET", help="The server's secret; better in RAMET_JWT_SECRET.")
@click.option("--secret-file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--subject", default="ramet-cli", show_default=True, help="Whom the token is for.")
@click.option("--duration", default="24h", show_default=True, help="How long it is valid.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(SCOPES),
    metavar="SCOPE",
    help="What it allows, such as instance:read; can be given several times. Everything without.",
)
@json_option
def token_command(
    secret: str | None,
    secret_file: Path | None,
    subject: str,
    duration: str,
    scopes: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make a token for the API over TCP, signed with the server's secret."""
    import jwt  # Only here.

    key = secret_file.read_text().strip() if secret_file is not None else secret
    if not key:
        raise Invalid("There is no secret to sign with", remedy="set RAMET_JWT_SECRET as for the server")
    if len(key.encode()) < SECRET_BYTES_MIN:
        raise Invalid(
            f"The secret is shorter than {SECRET_BYTES_MIN} bytes",
            remedy="make one with: openssl rand -hex 32",
        )
    now = int(time.time())
    claims: dict[str, object] = {"sub": subject, "iat": now, "exp": now + int(parse_duration(duration))}
    if scopes:
        claims["permissions"] = list(scopes)
    token = jwt.encode(claims, key, algorithm=ALGORITHM)
    if as_json:
        print_json({"token": token, **claims})
    else:
        click.echo(token)


@click.command("version")
@json_option
@click.pass_context
def version_command(context: click.Context, as_json: bool) -> None:
    """Show the versions of this program and of the server."""
    try:
        server = connect(context).capabilities().server
    except NotReachable:
        server = None
    if as_json:
        print_json({"client": __version__, "server": server})
        return
    click.echo(f"client  {__version__}")
    click.echo(f"server  {server.version} (API {server.api_version})" if server else "server  not reachable")
