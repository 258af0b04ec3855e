"""What an image says about running it: the part of its OCI config that we honour.

Parsed once; below this nobody asks whether a field was null, missing or empty.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ramet.images.documents import (
    Platform,
    as_object,
    digest,
    parse_object,
    string,
    string_map,
    strings,
)
from ramet.images.errors import InvalidManifest
from ramet.images.reference import Digest


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """How a container of this image starts.

    Attributes:
        entrypoint: put before `cmd`; both may be empty.
        cmd: default arguments, replaced by those of the request.
        env: "NAME=value" each, in the image's order.
        working_dir: absolute path in the image; "/" where it says nothing.
        user: "uid", "name", "uid:gid" or "name:group"; empty is root.
        exposed_ports: such as "80/tcp", sorted. Information only.
        labels: the image's own, unrelated to the tags we file it under.
        stop_signal: name or number; empty is SIGTERM.
        volumes: mount points the image declares, sorted.
    """

    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    env: tuple[str, ...]
    working_dir: str
    user: str
    exposed_ports: tuple[str, ...]
    labels: Mapping[str, str]
    stop_signal: str
    volumes: tuple[str, ...]
    os: str
    architecture: str
    variant: str
    created: str

    @property
    def platform(self) -> Platform:
        """What the image runs on."""
        return Platform(self.os, self.architecture, self.variant)

    @property
    def command(self) -> tuple[str, ...]:
        """The process to start where the request names none: `entrypoint`, then `cmd`."""
        return self.entrypoint + self.cmd


@dataclass(frozen=True, slots=True)
class ConfigDocument:
    """A parsed OCI image config.

    Attributes:
        config: what we honour of it.
        diff_ids: digests of the uncompressed layers, lowest first.
    """

    config: ImageConfig
    diff_ids: tuple[Digest, ...]


def parse_config(content: bytes) -> ConfigDocument:
    """Return the OCI or docker image config that `content` is.

    Raises:
        InvalidManifest: a field is of the wrong type, or the platform or the diff_ids are missing.
    """
    value = parse_object(content, "image config")
    rootfs = as_object(value.get("rootfs"), "image config's rootfs")
    found_diff_ids = rootfs.get("diff_ids")
    if not isinstance(found_diff_ids, list):
        raise InvalidManifest("The image config lists no diff_ids")
    run = as_object(value["config"], "image config") if value.get("config") is not None else {}
    os_name = string(value.get("os"), "os")
    architecture = string(value.get("architecture"), "architecture")
    if not os_name or not architecture:
        raise InvalidManifest("The image config names no os or no architecture")
    config = ImageConfig(
        entrypoint=_argv(run.get("Entrypoint"), "Entrypoint"),
        cmd=_argv(run.get("Cmd"), "Cmd"),
        env=strings(run.get("Env"), "Env"),
        working_dir=string(run.get("WorkingDir"), "WorkingDir") or "/",
        user=string(run.get("User"), "User"),
        exposed_ports=_keys(run.get("ExposedPorts"), "ExposedPorts"),
        labels=string_map(run.get("Labels"), "Labels"),
        stop_signal=string(run.get("StopSignal"), "StopSignal"),
        volumes=_keys(run.get("Volumes"), "Volumes"),
        os=os_name,
        architecture=architecture,
        variant=string(value.get("variant"), "variant"),
        created=string(value.get("created"), "created"),
    )
    return ConfigDocument(config, tuple(digest(item, "diff_id") for item in found_diff_ids))


def config_to_json(config: ImageConfig) -> dict[str, object]:
    """Return `config` as JSON-able values, the inverse of `config_from_json`."""
    return {
        "entrypoint": list(config.entrypoint),
        "cmd": list(config.cmd),
        "env": list(config.env),
        "working_dir": config.working_dir,
        "user": config.user,
        "exposed_ports": list(config.exposed_ports),
        "labels": dict(config.labels),
        "stop_signal": config.stop_signal,
        "volumes": list(config.volumes),
        "os": config.os,
        "architecture": config.architecture,
        "variant": config.variant,
        "created": config.created,
    }


def config_from_json(value: Mapping[str, object]) -> ImageConfig:
    """Return the config that `config_to_json` wrote as `value`.

    Raises:
        InvalidManifest: a field is of the wrong type.
    """
    return ImageConfig(
        entrypoint=strings(value.get("entrypoint"), "entrypoint"),
        cmd=strings(value.get("cmd"), "cmd"),
        env=strings(value.get("env"), "env"),
        working_dir=string(value.get("working_dir"), "working_dir"),
        user=string(value.get("user"), "user"),
        exposed_ports=strings(value.get("exposed_ports"), "exposed_ports"),
        labels=string_map(value.get("labels"), "labels"),
        stop_signal=string(value.get("stop_signal"), "stop_signal"),
        volumes=strings(value.get("volumes"), "volumes"),
        os=string(value.get("os"), "os"),
        architecture=string(value.get("architecture"), "architecture"),
        variant=string(value.get("variant"), "variant"),
        created=string(value.get("created"), "created"),
    )


def _argv(value: object, what: str) -> tuple[str, ...]:
    # Images of the first docker releases wrote one string, meant for a shell.
    if isinstance(value, str):
        return ("/bin/sh", "-c", value) if value else ()
    return strings(value, what)


def _keys(value: object, what: str) -> tuple[str, ...]:
    return () if value is None else tuple(sorted(as_object(value, what)))
