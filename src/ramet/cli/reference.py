"""docs/cli.md, written from the commands themselves: `python -m ramet.cli.reference > docs/cli.md`."""

from collections.abc import Iterator

import click

from ramet.cli.main import cli

WIDTH = 100
_HEAD = """\
# Command line

Written by `python -m ramet.cli.reference` from the commands themselves.

`ramet` talks to the server named by `--host` or `RAMET_HOST`, by default the unix socket of this host; over
TCP with the token in `RAMET_API_KEY`. INSTANCE is a name, an id or a unique beginning of an id. Errors go to
stderr as one line that ends with [the error's code](troubleshooting.md), with what to do about it beneath.

| exit code | when |
|---|---|
| 0 | it worked |
| 1 | the server refused or failed, or is not there |
| 2 | the command was not understood |
| 130 | interrupted |
| any | `exec`: the command's own; 127 where it was not found, 128 + N where signal N ended it |
"""


def render() -> str:
    """Return the whole reference."""
    return "\n".join([_HEAD, *_sections(cli, "ramet", None)]).rstrip() + "\n"


def _sections(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    settings = {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    yield f"## {context.command_path}\n\n```\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for child_name in command.list_commands(context):
            child = command.get_command(context, child_name)
            assert child is not None
            yield from _sections(child, child_name, context)


if __name__ == "__main__":
    click.echo(render(), nl=False)
