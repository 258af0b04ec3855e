"""Limits as Firecracker's token buckets: of a network card one for each direction, of a disk one for both."""

from typing import Final

from ramet.vmm.port import NicLimits
from ramet.vmm.token_bucket import bucket_of, disk_bucket_of

_OFF: Final = {"size": 0, "refill_time": 0}
"""Of a request: no limit, also where there was one."""


def limiters_of(limits: NicLimits) -> dict[str, object]:
    """Return the members of a request that hold a network card to `limits`, or free it of those it had."""
    return {
        "rx_rate_limiter": {"bandwidth": _bucket(limits.download_bytes_per_s)},
        "tx_rate_limiter": {"bandwidth": _bucket(limits.upload_bytes_per_s)},
    }


def disk_limiter_of(rate_bytes_per_s: int) -> dict[str, object]:
    """Return the member of a request that holds a disk to a rate."""
    return {"rate_limiter": {"bandwidth": disk_bucket_of(rate_bytes_per_s)}}


def _bucket(rate_bytes_per_s: int | None) -> dict[str, int]:
    return _OFF if rate_bytes_per_s is None else bucket_of(rate_bytes_per_s)
