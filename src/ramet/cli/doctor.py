"""`ramet doctor`: is this host fit, and what mends it."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from ramet import __version__
from ramet.cli.options import json_option
from ramet.cli.output import print_json

EXIT_UNFIT: Final = 1
_COLOURS: Final = {"ok": "green", "info": "cyan", "warn": "yellow", "fail": "red"}
_INDENT: Final = " " * 6


@click.command("doctor")
@click.option("--data-dir", type=click.Path(path_type=Path), help="The data folder to look at.")
@click.option("--socket", type=click.Path(path_type=Path), help="The unix socket of the API.")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="A file of settings; /etc/ramet/config.yaml if it is there.",
)
@json_option
def doctor_command(data_dir: Path | None, socket: Path | None, config: Path | None, as_json: bool) -> int:
    """Check this host, and say what mends it. Changes nothing; needs no server.

    Exits with 1 if something fails that ramet needs, with 0 otherwise. As root it sees more.
    """
    given = {"data_dir": data_dir, "socket": socket}
    # As `serve` does: the daemon's own settings decide what is looked at.
    checkup = importlib.import_module("ramet.daemon.checkup")
    findings = checkup.examine({name: value for name, value in given.items() if value is not None}, config)
    status = importlib.import_module("ramet.doctor.findings").worst(findings)
    if as_json:
        print_json({"version": __version__, "status": status, "findings": findings})
    else:
        _print(findings, status)
    return EXIT_UNFIT if status == "fail" else 0


def _print(findings: Sequence[Any], status: str) -> None:
    for finding in findings:
        level = click.style(finding.level.ljust(4), fg=_COLOURS[finding.level], bold=True)
        click.echo(f"{level}  {finding.check}: {finding.message}")
        if finding.remedy:
            click.echo(f"{_INDENT}{click.style(finding.remedy, dim=True)}")
    counts = {name: sum(finding.level == name for finding in findings) for name in ("fail", "warn")}
    verdict = {
        "ok": "ramet can work here.",
        "warn": f"ramet can work here; {counts['warn']} warnings.",
        "fail": f"ramet cannot work here as it should: {counts['fail']} of the checks fail.",
    }
    click.echo(f"\n{verdict[status]}")
