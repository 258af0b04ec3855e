"""The command line: `ramet COMMAND`. A command's module is imported when the command is used, not before."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final, NoReturn

import click

from ramet import __version__
from ramet.cli.output import report
from ramet.core.errors import RametError

EXIT_FAILED: Final = 1
EXIT_INTERRUPTED: Final = 130

_COMMANDS: Final = {
    "serve": "ramet.cli.server",
    "run": "ramet.cli.lifecycle",
    "ps": "ramet.cli.listing",
    "inspect": "ramet.cli.listing",
    "exec": "ramet.cli.exec",
    "attach": "ramet.cli.attach",
    "cp": "ramet.cli.copy",
    "logs": "ramet.cli.listing",
    "fork": "ramet.cli.forking",
    "pool": "ramet.cli.forking",
    "standby": "ramet.cli.lifecycle",
    "restore": "ramet.cli.lifecycle",
    "auto-standby": "ramet.cli.idle",
    "snapshot": "ramet.cli.snapshots",
    "volume": "ramet.cli.volumes",
    "wait": "ramet.cli.lifecycle",
    "start": "ramet.cli.lifecycle",
    "stop": "ramet.cli.lifecycle",
    "restart": "ramet.cli.lifecycle",
    "rm": "ramet.cli.lifecycle",
    "bench": "ramet.cli.bench",
    "pull": "ramet.cli.images",
    "image": "ramet.cli.images",
    "resources": "ramet.cli.resources",
    "stats": "ramet.cli.resources",
    "reclaim": "ramet.cli.reclaim",
    "doctor": "ramet.cli.doctor",
    "setup": "ramet.cli.setup",
    "token": "ramet.cli.server",
    "version": "ramet.cli.server",
}
"""Where each command is; its function is called `<name>_command`, with _ for -."""


class LazyGroup(click.Group):
    """A group that imports a command's module when it is asked for it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = _COMMANDS.get(cmd_name)
        if module is None:
            return None
        command = getattr(import_module(module), f"{cmd_name.replace('-', '_')}_command")
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", message="%(version)s")
@click.option(
    "--host",
    envvar="RAMET_HOST",
    metavar="URL",
    help="The server: unix:///run/ramet/api.sock (the default) or http://127.0.0.1:4973, with the token in"
    " RAMET_API_KEY.",
)
@click.pass_context
def cli(context: click.Context, host: str | None) -> None:
    """Turn OCI images into microVMs, and fork them while they run."""
    context.obj = host


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; what goes wrong is told on stderr.

    Args:
        arguments: without the program's name; by default those of this process.
    """
    try:
        exit_code = cli.main(arguments, prog_name="ramet", standalone_mode=False)
        sys.stdout.flush()
    except RametError as error:
        report(error)
        return EXIT_FAILED
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough. What is left in the buffer must go nowhere, quietly.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return exit_code if isinstance(exit_code, int) else 0


def main() -> NoReturn:
    """Run the command of this process's arguments and exit."""
    sys.exit(run())
