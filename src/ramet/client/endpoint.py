"""Where the server is: a unix socket, or a host and port with a token."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
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
    def from_environment(cls, url: str | None = None) -> Self:
        """Read RAMET_HOST and RAMET_API_KEY, then the client's file; without all, the socket of this host.

        The file is RAMET_CLI_CONFIG, by default ~/.config/ramet/cli.toml; its token goes to its host only.

        Args:
            url: where the server is, instead of what RAMET_HOST says.

        Raises:
            Invalid: the place named is none, or the file cannot be read.
        """
        chosen, token = url or os.environ.get("RAMET_HOST"), os.environ.get("RAMET_API_KEY")
        if chosen and token:
            return cls.parse(chosen, token)
        host, kept_token = read_client_file()
        endpoint = cls.parse(chosen or host or DEFAULT_HOST, token)
        if token is None and kept_token is not None and host is not None:
            same = cls.parse(host, None) == endpoint
            return replace(endpoint, api_key=kept_token) if same else endpoint
        return endpoint

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


def read_client_file() -> tuple[str | None, str | None]:
    """Return host and token of the client's file, None for what it does not say.

    Raises:
        Invalid: it is there and cannot be read.
    """
    folder = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    path = Path(os.environ.get("RAMET_CLI_CONFIG") or f"{folder}/ramet/cli.toml")
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None, None
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(path) from error
    import tomllib  # Only here: most calls have no such file.

    try:
        found = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _unreadable(path) from error
    host, token = found.get("host"), found.get("api_key")
    if not isinstance(host, str | None) or not isinstance(token, str | None):
        raise _unreadable(path)
    return host, token


def _unreadable(path: Path) -> Invalid:
    return Invalid(
        f"{path} cannot be read as the client's settings", remedy="ramet setup --force writes it anew"
    )


def _invalid(url: str) -> Invalid:
    return Invalid(
        f"{url!r} is not where a server can be",
        remedy="set RAMET_HOST like unix:///run/ramet/api.sock or http://127.0.0.1:4973",
    )
