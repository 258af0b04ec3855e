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

    `wakes_on_traffic`: whether it is woken, however it came to sleep, by who asks it for a connection that
    counts; None: if it `is_enabled`, as the daemon does by default.
    """

    is_enabled: bool
    idle_timeout_s: float
    ignored_sources: tuple[str, ...] = ()
    ignored_ports: tuple[int, ...] = ()
    wakes_on_traffic: bool | None = None

    def is_woken_by_traffic(self, *, by_default: bool) -> bool:
        """Tell whether traffic wakes it, where the daemon's default is `by_default`."""
        if self.wakes_on_traffic is None:
            return by_default and self.is_enabled
        return self.wakes_on_traffic

    @property
    def ignored_networks(self) -> tuple[IPv4Network, ...]:
        """The `ignored_sources`."""
        return tuple(_network(source) for source in self.ignored_sources)

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
        wakes = raw.get("wakes_on_traffic")
        return cls(
            bool(raw["is_enabled"]),
            float(raw["idle_timeout_s"]),
            sources,
            ports,
            None if wakes is None else bool(wakes),
        )


@dataclass(frozen=True, slots=True)
class LeftIdle:
    """How an instance was left by who watched it: idle for `idle_s`, held until then in Unix seconds."""

    idle_s: float
    hold_until: float | None = None


@lru_cache(maxsize=4096)
def _network(text: str) -> IPv4Network:
    return IPv4Network(text)
