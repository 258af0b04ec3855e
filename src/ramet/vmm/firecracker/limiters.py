"""A network card's limits as Firecracker's token buckets.

A bucket that is empty is looked at again after 100 ms (`REFILL_TIMER_INTERVAL_MS` of its rate limiter) and no
sooner. One that held less than 100 ms let through would never reach its rate; so ours hold 200 ms.
"""

from typing import Final

from ramet.vmm.port import NicLimits

REFILL_MS: Final = 200
_BUCKET_BYTES_MIN: Final = 2 * 1518
_OFF: Final = {"size": 0, "refill_time": 0}
"""Of a request: no limit, also where there was one."""


def limiters_of(limits: NicLimits) -> dict[str, object]:
    """Return the members of a request that hold a network card to `limits`, or free it of those it had."""
    return {
        "rx_rate_limiter": {"bandwidth": _bucket(limits.download_bytes_per_s)},
        "tx_rate_limiter": {"bandwidth": _bucket(limits.upload_bytes_per_s)},
    }


def _bucket(rate_bytes_per_s: int | None) -> dict[str, int]:
    if rate_bytes_per_s is None:
        return _OFF
    size_bytes = max(rate_bytes_per_s * REFILL_MS // 1000, _BUCKET_BYTES_MIN)
    return {"size": size_bytes, "refill_time": round(size_bytes * 1000 / rate_bytes_per_s)}
