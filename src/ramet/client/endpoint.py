"""Where the server is: a unix socket, or a host and port with a token."""

import os
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import urlsplit

from ramet.core.errors import Invalid

DEFAULT_HOST: Final = "unix:///run/ramet/api.sock"
DEFAULT_PORT: Final = 4973


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A place to connect to: `socket_path`, or `host` and `port`, perhaps under TLS and a path `prefix`."""

    socket_path: str | None = None
    host: str = "localhost"
    port: int = DEFAULT_PORT
    is_tls: bool = False
    prefix: str = ""
    api_key: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str, api_key: str | None = None) -> Self:
        """Read `unix:///path`, `http://host:port` or `https://host:port`.

        Raises:
            Invalid: it is none of these.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise _invalid(url) from error
        if parts.scheme == "unix" and parts.path and not parts.netloc:
            return cls(socket_path=parts.path, api_key=api_key)
        if parts.scheme in ("http", "https") and parts.hostname and not parts.query:
            is_tls = parts.scheme == "https"
            default = 443 if is_tls else DEFAULT_PORT
            return cls(None, parts.hostname, port or default, is_tls, parts.path.rstrip("/"), api_key)
        raise _invalid(url)

    @classmethod
    def from_environment(cls) -> Self:
        """Read RAMET_HOST and RAMET_API_KEY; without them, the socket of this host.

        Raises:
            Invalid: RAMET_HOST is none.
        """
        return cls.parse(os.environ.get("RAMET_HOST") or DEFAULT_HOST, os.environ.get("RAMET_API_KEY"))

    def __str__(self) -> str:
        if self.socket_path is not None:
            return f"unix://{self.socket_path}"
        return f"{'https' if self.is_tls else 'http'}://{self.authority}{self.prefix}"

    @property
    def authority(self) -> str:
        """What the Host header says."""
        if self.socket_path is not None:
            return "localhost"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        return {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}


def _invalid(url: str) -> Invalid:
    return Invalid(
        f"{url!r} is not where a server can be",
        remedy="set RAMET_HOST like unix:///run/ramet/api.sock or http://127.0.0.1:4973",
    )
