"""A rate as a token bucket: how Firecracker limits a device, and Cloud Hypervisor with its code.

A bucket that is empty is looked at again after 100 ms (`REFILL_TIMER_INTERVAL_MS` of their rate limiter), no
sooner. One that held less than 100 ms let through would never reach its rate; so ours hold 200 ms.
"""

from typing import Final

REFILL_MS: Final = 200
_BUCKET_BYTES_MIN: Final = 2 * 1518


def bucket_of(rate_bytes_per_s: int) -> dict[str, int]:
    """Return the bucket (`size` in bytes, `refill_time` in ms) that lets so much through, and no more."""
    size_bytes = max(rate_bytes_per_s * REFILL_MS // 1000, _BUCKET_BYTES_MIN)
    return {"size": size_bytes, "refill_time": round(size_bytes * 1000 / rate_bytes_per_s)}
