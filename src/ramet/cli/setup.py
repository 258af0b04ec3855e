"""`ramet setup`: settings, a unit and a token, once per host."""

import importlib
import os
import pwd
import sys
from pathlib import Path
from typing import Final

import click

from ramet.core.errors import Invalid

_NEXT: Final = """ramet doctor
     sysctl -p /etc/sysctl.d/60-ramet.conf
     systemctl daemon-reload && systemctl enable --now ramet
     ramet ps"""


@click.command("setup")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where everything will be kept.")
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default="127.0.0.1:4973",
    show_default=True,
    help='The API over TCP, with tokens; "" for the unix socket alone, which is root\'s.',
)
@click.option("--kernel-package", type=click.Path(path_type=Path), help="A .deb with the guests' kernel.")
@click.option("--user", metavar="NAME", help="Whose command line is set up; by default who called sudo.")
@click.option("--root", type=click.Path(path_type=Path), default="/", help="Install into this folder.")
@click.option("--program", help="The path of ramet as the unit starts it; by default this one.")
@click.option("--force", is_flag=True, help="Write unit, sysctl and token anew. The settings are kept.")
@click.option("--print", "only_print", is_flag=True, help="Show what would be written, and write nothing.")
@click.option("--uninstall", is_flag=True, help="Remove what setup wrote, but settings and data.")
def setup_command(
    data_dir: Path | None,
    listen: str,
    kernel_package: Path | None,
    user: str | None,
    root: Path,
    program: str | None,
    force: bool,
    only_print: bool,
    uninstall: bool,
) -> None:
    """Write the server's settings with a new secret, its systemd unit, and a token for this command line.

    What is there already is kept, so it can be run again. Nothing is started.
    """
    parts = importlib.import_module("ramet.setup.install")  # Not before it is used: YAML and JWT are slow.
    plan = parts.Plan(
        root=root,
        program=(program,) if program else _own_program(),
        user=_find_user(parts.User, user),
        data_dir=_absolute(data_dir) or parts.DATA_DIR_DEFAULT,
        listen=listen or None,
        kernel_package=_absolute(kernel_package),
        force=force,
    )
    if only_print:
        for path, text in parts.texts(plan):
            click.echo(f"==> {path}\n{text}")
        return
    for step in parts.uninstall(plan) if uninstall else parts.install(plan):
        click.echo(f"{step.outcome:<8}  {step.path}" + (f"  ({step.note})" if step.note else ""))
    if uninstall:
        click.echo("\nNow: systemctl daemon-reload")
    elif root == Path("/"):
        click.echo(f"\nNow: {_NEXT}")


def _absolute(path: Path | None) -> Path | None:
    return path.absolute() if path is not None else None


def _own_program() -> tuple[str, ...]:
    """Return the words that start this very installation, whatever PATH the service has."""
    script = Path(sys.executable).parent / "ramet"
    return (str(script),) if script.exists() else (sys.executable, "-m", "ramet.cli")


def _find_user(kind: type, name: str | None) -> object:
    wanted = name or (os.environ.get("SUDO_USER") if os.geteuid() == 0 else None)
    try:
        entry = pwd.getpwnam(wanted) if wanted else pwd.getpwuid(os.geteuid())
    except KeyError:
        raise Invalid(f"there is no user {wanted or os.geteuid()}", remedy="name one with --user") from None
    return kind(entry.pw_name, entry.pw_uid, entry.pw_gid, Path(entry.pw_dir))
