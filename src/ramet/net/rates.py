"""What a guest may send and receive at most, and the token buckets that hold it to it.

A bucket holds what 20 ms let through: a host that is that late to look at it loses no rate, and what a guest
gets ahead of its rate in a second is 2 % of it. What waits is let wait 50 ms: TCP fills the rate with it, and
whoever shares the line with a long transfer waits no longer. Both have room for a few frames at any rate.
"""

from dataclasses import dataclass
from typing import Final

from ramet.linux.tc import TokenBucket

BURST_S: Final = 0.020
QUEUE_S: Final = 0.050
BURST_FRAME_COUNT_MIN: Final = 2
QUEUE_FRAME_COUNT_MIN: Final = 16  # A first window of TCP is ten.
FRAME_OVERHEAD_BYTES: Final = 18  # Ethernet's header, and a tag.
QUEUE_BYTES_MAX: Final = 256 << 20
BURST_BYTES_MAX: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Download is what comes to the guest, upload what it sends; bytes per second, None is without limit.

    Counted are whole frames, so TCP carries about 4 % less.
    """

    download_bytes_per_s: int | None = None
    upload_bytes_per_s: int | None = None

    def or_else(self, default: "RateLimits") -> "RateLimits":
        """Return these limits, with those of `default` where there is none."""
        download, upload = self.download_bytes_per_s, self.upload_bytes_per_s
        return RateLimits(
            default.download_bytes_per_s if download is None else download,
            default.upload_bytes_per_s if upload is None else upload,
        )


UNLIMITED: Final = RateLimits()


def bucket_of(rate_bytes_per_s: int, mtu_bytes: int) -> TokenBucket:
    """Return the bucket for a rate, on an interface with frames of up to `mtu_bytes` and their header."""
    frame_bytes = mtu_bytes + FRAME_OVERHEAD_BYTES
    burst_bytes = max(int(rate_bytes_per_s * BURST_S), BURST_FRAME_COUNT_MIN * frame_bytes)
    queue_bytes = max(int(rate_bytes_per_s * QUEUE_S), QUEUE_FRAME_COUNT_MIN * frame_bytes)
    return TokenBucket(rate_bytes_per_s, min(burst_bytes, BURST_BYTES_MAX), min(queue_bytes, QUEUE_BYTES_MAX))
