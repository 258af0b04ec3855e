"""A rate as a token bucket: how Firecracker limits a device, and Cloud Hypervisor with its code.

A bucket that is empty is looked at again after 100 ms (`REFILL_TIMER_INTERVAL_MS` of their rate limiter), no
sooner. One that held less than 100 ms let through would never reach its rate; so ours hold 200 ms.

A request that is larger than the bucket is let through, and then nothing until what it took too much would
have come; but that time fills the bucket, too. So requests of one to two buckets come at twice the rate: a
bucket must hold the largest request.
"""

from typing import Final

REFILL_MS: Final = 200
DISK_BUCKET_BYTES_MIN: Final = 4 << 20
"""The largest request of a guest's kernel that was not told otherwise (`BLK_DEF_MAX_SECTORS_CAP`): 4 MiB, and
1.25 MiB before Linux 6.16."""
_BUCKET_BYTES_MIN: Final = 2 * 1518


def bucket_of(rate_bytes_per_s: int) -> dict[str, int]:
    """Return the bucket (`size` in bytes, `refill_time` in ms) that lets so much through, and no more."""
    return _bucket(rate_bytes_per_s, _BUCKET_BYTES_MIN)


def disk_bucket_of(rate_bytes_per_s: int) -> dict[str, int]:
    """Return the bucket that lets a disk's requests through, as `bucket_of` does."""
    return _bucket(rate_bytes_per_s, DISK_BUCKET_BYTES_MIN)


def _bucket(rate_bytes_per_s: int, size_bytes_min: int) -> dict[str, int]:
    size_bytes = max(rate_bytes_per_s * REFILL_MS // 1000, size_bytes_min)
    return {"size": size_bytes, "refill_time": round(size_bytes * 1000 / rate_bytes_per_s)}
