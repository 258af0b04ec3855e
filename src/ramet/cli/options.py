"""Options and arguments that several commands share."""

from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import click

from ramet.client import Client, Endpoint
from ramet.wire_api.compression import SnapshotCompression
from ramet.wire_api.volumes import VolumeMount

TARGETS: Final = ("Running", "Standby", "Stopped")

F = TypeVar("F", bound=Callable[..., Any])


def connect(context: click.Context) -> Client:
    """Return the client of the server that `--host` or the environment names."""
    return Client(Endpoint.from_environment(context.find_root().obj))


def json_option(function: F) -> F:
    """Add `--json`, as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def env_option(function: F) -> F:
    """Add `-e KEY=VALUE`, as `env`: a tuple of pairs."""
    return click.option(
        "-e",
        "--env",
        multiple=True,
        metavar="KEY=VALUE",
        callback=_pairs,
        help="Set an environment variable; can be given several times.",
    )(function)


def tag_option(help_text: str) -> Callable[[F], F]:
    """Add `-l KEY=VALUE`, as `tags`: a dict."""
    return click.option(
        "-l", "--tag", "tags", multiple=True, metavar="KEY=VALUE", callback=_pairs, help=help_text
    )


def volume_option(function: F) -> F:
    """Add `-v VOLUME:PATH[:ro[:overlay=SIZE]]`, as `volumes`: a tuple of mounts."""
    return click.option(
        "-v",
        "--volume",
        "volumes",
        multiple=True,
        metavar="VOLUME:PATH[:ro[:overlay=SIZE]]",
        callback=_mounts,
        help="Mount a volume: to write to it alone, to read it (ro), or to read it and keep what it writes"
        " itself (overlay); can be given several times.",
    )(function)


def target_option(default: str) -> Callable[[F], F]:
    """Add `--target STATE`, as `target`; `default` says in words what it is without."""
    return click.option(
        "--target",
        "--target-state",
        "target",
        type=click.Choice(TARGETS, case_sensitive=False),
        help=f"The state to come to; by default {default}.",
    )


def compression_option(help_text: str) -> Callable[[F], F]:
    """Add `--compression ALGORITHM[:LEVEL]`, as `compression`; None is "not said"."""
    return click.option(
        "--compression", metavar="zstd|lz4[:LEVEL]|off", callback=_compression, help=help_text
    )


def compression_delay_option(function: F) -> F:
    """Add `--compression-delay`, as `compression_delay`: a duration as text."""
    return click.option(
        "--compression-delay",
        metavar="DURATION",
        help="How long what sleeps is left as it is before.",
    )(function)


def command_words(words: Sequence[str]) -> tuple[str, ...]:
    """Return a guest's command without the `--` that may stand before it."""
    return tuple(words[1:] if words and words[0] == "--" else words)


def _compression(_: click.Context, __: click.Parameter, text: str | None) -> SnapshotCompression | None:
    if text is None:
        return None
    if text == "off":
        return SnapshotCompression(False)
    algorithm, colon, level = text.partition(":")
    if colon and not level.isdecimal():
        raise click.BadParameter(f"{text!r} is not ALGORITHM[:LEVEL]")
    return SnapshotCompression(True, algorithm, int(level) if colon else None)


def _mounts(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[VolumeMount, ...]:
    return tuple(map(_mount, values))


def _mount(text: str) -> VolumeMount:
    volume, _, rest = text.partition(":")
    path, *how = rest.split(":")
    match how:
        case [] | ["rw"]:
            return VolumeMount(volume, path)
        case ["ro"]:
            return VolumeMount(volume, path, readonly=True)
        case ["ro", overlay] if overlay.startswith("overlay="):
            size = overlay.removeprefix("overlay=")
            return VolumeMount(volume, path, readonly=True, overlay=True, overlay_size=size)
    raise click.BadParameter(f"{text!r} is not VOLUME:PATH[:ro[:overlay=SIZE]]")


def _pairs(_: click.Context, __: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in values:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"{text!r} is not KEY=VALUE")
        pairs[key] = value
    return pairs
