"""When a request that failed is made again: one rule for registries and for their token servers.

What may pass is asked again a few times, each time after a longer wait; and whoever says how long we
shall wait is obeyed, unless that is longer than a user would watch.
"""

import email.utils
import random
import time
from datetime import UTC
from http import HTTPStatus
from typing import Final

import anyio
import httpx

from ramet.images.errors import RegistryBusy
from ramet.images.registry.config import RegistryConfig

BACKOFF_S_MAX: Final = 10.0
RETRY_AFTER_S_MAX: Final = 10**9  # Thirty years; more digits would only be trouble.

_PASSING: Final = frozenset(
    {
        HTTPStatus.REQUEST_TIMEOUT,
        HTTPStatus.INTERNAL_SERVER_ERROR,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
        HTTPStatus.GATEWAY_TIMEOUT,
    }
)


class Attempts:
    """The failures of one request.

    Args:
        host: who is asked, for the error.
        registry: on whose behalf; the same, unless `host` is a token server.
    """

    def __init__(self, config: RegistryConfig, host: str, registry: str) -> None:
        self._config = config
        self._host = host
        self._registry = registry
        self._failure_count = 0
        self._waited_s = 0.0

    async def wait_for_another(self) -> bool:
        """Count a failure; wait, and return True, if there may be another attempt."""
        self._failure_count += 1
        if self._failure_count >= self._config.attempt_count_max:
            return False
        await anyio.sleep(backoff_s(self._config, self._failure_count))
        return True

    async def may_pass(self, response: httpx.Response) -> bool:
        """Tell whether to ask again after this answer; if so, the time to wait is over.

        Raises:
            RegistryBusy: it is 429, or 503 with a Retry-After, and asks for more time than we give or has
                come too often.
        """
        wish = response.headers.get("retry-after")
        is_unavailable = response.status_code == HTTPStatus.SERVICE_UNAVAILABLE
        if response.status_code == HTTPStatus.TOO_MANY_REQUESTS or (is_unavailable and wish is not None):
            await self._obey(wish)
            return True
        return response.status_code in _PASSING and await self.wait_for_another()

    async def _obey(self, retry_after: str | None) -> None:
        own_s = self._config.backoff_s * 2.0**self._failure_count
        wait_s = max(own_s, retry_after_s(retry_after, own_s))
        self._failure_count += 1
        self._waited_s += wait_s
        if self._failure_count >= self._config.attempt_count_max or self._waited_s > self._config.wait_s_max:
            raise RegistryBusy(
                f"{self._host} allows no more requests for {wait_s:.0f} s",
                remedy=f"log in to it (docker login {self._registry}), or try again later",
                retry_after_s=round(wait_s, 1),
                registry=self._registry,
            )
        await anyio.sleep(wait_s)


def backoff_s(config: RegistryConfig, failure_count: int) -> float:
    """Return how long to wait after so many failures in a row."""
    longest_s = min(config.backoff_s * 2.0 ** (failure_count - 1), BACKOFF_S_MAX)
    return longest_s * random.uniform(0.5, 1.0)


def is_passing(status: int) -> bool:
    """Tell whether a status means that the server is in trouble, and not that we are wrong."""
    return status in _PASSING


def retry_after_s(header: str | None, default_s: float) -> float:
    """Return the seconds that a Retry-After header (seconds or a date) asks for; never negative."""
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return float(min(int(text[:10]), RETRY_AFTER_S_MAX))
    try:
        date = email.utils.parsedate_to_datetime(text)
        # The oldest form of an HTTP date names no zone; all are in universal time (RFC 9110, 5.6.7).
        return max(0.0, date.replace(tzinfo=date.tzinfo or UTC).timestamp() - time.time())
    except (ValueError, OverflowError):
        return default_s
