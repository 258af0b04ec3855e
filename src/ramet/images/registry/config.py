"""Where a registry is, how it may be spoken to, and how patient we are with it.

Plain HTTP is for loopback and for registries that the operator listed; everything else is TLS, also after
a redirect. So no setting of a registry's can make us send a secret in the clear.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ramet.images.limits import GIB
from ramet.images.reference import DEFAULT_REGISTRY

DOCKER_HUB: Final = "registry-1.docker.io"  # What serves the images of docker.io.
CACHE_BYTES_MAX: Final = 2 * GIB


@dataclass(frozen=True, slots=True)
class RegistryConfig:
    """What the operator decides about registries.

    Attributes:
        insecure: "host" or "host:port" of registries that speak plain HTTP; loopback always may.
        mirrors: by registry, "host:port" that is asked first; docker.io has its most often.
        docker_config: folder of Docker's config.json; None reads none.
        cache_bytes_max: of downloaded layers kept for other images and later tries.
        layer_count_max: layers of one image downloaded at once.
        pull_count_max: images downloaded at once.
        connect_timeout_s: to connect, TLS included.
        stall_timeout_s: for the next `stall_bytes`; a registry slower than that has stalled.
        document_timeout_s: for a whole manifest, config or token.
        attempt_count_max: without progress in between.
        wait_s_max: for as long as one request's answers may have us wait, all together.
        backoff_s: wait before the second attempt; doubled for each further one.
    """

    insecure: frozenset[str] = frozenset()
    mirrors: Mapping[str, str] = field(default_factory=dict)
    docker_config: Path | None = None
    cache_bytes_max: int = CACHE_BYTES_MAX
    layer_count_max: int = 3
    pull_count_max: int = 3
    connect_timeout_s: float = 10.0
    stall_timeout_s: float = 30.0
    stall_bytes: int = 64 << 10
    document_timeout_s: float = 30.0
    attempt_count_max: int = 4
    wait_s_max: float = 20.0
    backoff_s: float = 0.5

    def speaks_http(self, authority: str) -> bool:
        """Tell whether plain HTTP may be spoken with "host" or "host:port"."""
        return authority in self.insecure or host_of(authority) in self.insecure or is_loopback(authority)

    def base_url(self, authority: str) -> str:
        """Return where the API of a registry begins, such as "https://registry.example/v2"."""
        scheme = "http" if self.speaks_http(authority) else "https"
        return f"{scheme}://{authority}/v2"


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """A secret for one registry, in memory only; never printed.

    Attributes:
        identity_token: exchanged for access tokens, where a login gave one instead of a password.
        registry_token: an access token itself, sent as it is.
    """

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __repr__(self) -> str:
        return "Credentials(...)"

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token or self.registry_token)


def authority_of(registry: str) -> str:
    """Return the host that serves the images of `registry`."""
    return DOCKER_HUB if registry == DEFAULT_REGISTRY else registry


def host_of(authority: str) -> str:
    """Return "host" of "host:port", without the brackets of an IPv6 address."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0]
    return authority.partition(":")[0]


def is_loopback(authority: str) -> bool:
    """Tell whether "host" or "host:port" is this host, by its name or address alone."""
    host = host_of(authority)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
