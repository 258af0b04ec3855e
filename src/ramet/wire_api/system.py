"""What a server says about itself."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Health:
    """The answer of a server that is alive: `status` is "ok"."""

    status: str


@dataclass(frozen=True, slots=True)
class ServerVersion:
    """`version` of ramet; `api_version` of the API it is compatible with."""

    version: str
    api_version: str


@dataclass(frozen=True, slots=True)
class HostKind:
    """The host, in Go's words: "linux" and "amd64"."""

    os: str
    arch: str


@dataclass(frozen=True, slots=True)
class DefaultRuntime:
    """What runs an instance that names no hypervisor."""

    name: str
    available: bool


@dataclass(frozen=True, slots=True)
class Runtime:
    """One hypervisor and what can be done with it on this host."""

    name: str
    available: bool
    features: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NetworkModel:
    """The network that guests are on: `model` is "bridge"."""

    model: str
    guest_to_guest: bool
    gateway: str | None = None
    subnet: str | None = None


@dataclass(frozen=True, slots=True)
class ImagePlatforms:
    """Platforms of images this host runs, as os/arch."""

    platforms: tuple[str, ...]
    default_platform: str


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What this server can do."""

    server: ServerVersion
    host: HostKind
    default_runtime: DefaultRuntime
    runtimes: tuple[Runtime, ...]
    network: NetworkModel
    images: ImagePlatforms
    features: tuple[str, ...]
