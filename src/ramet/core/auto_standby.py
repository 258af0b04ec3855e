"""When an instance that nobody is connected to goes to sleep by itself, as it was asked for."""

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final, Self

IDLE_TIMEOUT_S_MIN: Final = 1.0
IDLE_TIMEOUT_S_MAX: Final = 365 * 86_400.0
IGNORED_COUNT_MAX: Final = 100
"""Of sources, and of ports."""


@dataclass(frozen=True, slots=True)
class AutoStandby:
    """It sleeps when it has had no inbound TCP connection for so long.

    `ignored_sources` are networks in CIDR notation, whose connections do not count; nor do those to one of
    `ignored_ports`.
    """

    is_enabled: bool
    idle_timeout_s: float
    ignored_sources: tuple[str, ...] = ()
    ignored_ports: tuple[int, ...] = ()

    def counts(self, client: IPv4Address, port: int) -> bool:
        """Tell whether a connection from `client` to `port` keeps it awake."""
        return port not in self.ignored_ports and not any(
            client in _network(source) for source in self.ignored_sources
        )

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Read what `asdict` and JSON made of one.

        Raises:
            ValueError, TypeError, KeyError: they did not.
        """
        sources = tuple(str(_network(source)) for source in raw["ignored_sources"])
        ports = tuple(int(port) for port in raw["ignored_ports"])
        return cls(bool(raw["is_enabled"]), float(raw["idle_timeout_s"]), sources, ports)


@lru_cache(maxsize=4096)
def _network(text: str) -> IPv4Network:
    return IPv4Network(text)
