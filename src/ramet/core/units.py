"""Sizes, rates and durations as people write them.

Sizes follow the API we are compatible with: "512MB", "1GB", "2G", "10GiB", "4096"; every prefix is
a power of 1024, as its users have come to expect of memory and disks. Rates are those of networks: "1Gbps",
"20Mbit/s", "125MB/s", prefixes are powers of 1000, of 1024 where they say so ("100MiB/s"), and bits are told
from bytes by how they are written. Durations are Go's: "90s", "5m", "1h30m", "250ms".
"""

import re
from decimal import Decimal
from typing import Final

from ramet.core.errors import Invalid

TEXT_LENGTH_MAX: Final = 64
"""Nobody writes a longer one, and the patterns below take time by its square."""

AMOUNT_MAX: Final = (1 << 63) - 1
"""No disk, memory or network has more bytes; larger numbers would not even be counted exactly."""

_PREFIX: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", re.IGNORECASE)
_RATE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(?:([KMGTkmgt])(i?))?(bps|bits?/s|bit|B/s)\s*")
_DURATION_S: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")


def parse_size(text: str) -> int:
    """Return the number of bytes `text` stands for.

    Raises:
        Invalid: `text` is not a size, or larger than AMOUNT_MAX.
    """
    match = _SIZE.fullmatch(text) if len(text) <= TEXT_LENGTH_MAX else None
    if match is None:
        raise Invalid(f"{text[:TEXT_LENGTH_MAX]!r} is not a size", remedy="write it like 512MB, 1GB or 2G")
    size_bytes = int(Decimal(match[1]) * _PREFIX[match[2].upper()])
    if size_bytes > AMOUNT_MAX:
        raise Invalid(f"{text!r} is larger than any memory or disk", remedy=f"use {AMOUNT_MAX} bytes at most")
    return size_bytes


def format_size(size_bytes: int) -> str:
    """Write `size_bytes` in the largest unit that keeps it whole: 536870912 -> "512MB"."""
    for prefix in ("T", "G", "M", "K"):
        if size_bytes and size_bytes % _PREFIX[prefix] == 0:
            return f"{size_bytes // _PREFIX[prefix]}{prefix}B"
    return f"{size_bytes}B"


def parse_rate(text: str) -> int:
    """Return the bytes per second that `text` stands for: "1Gbps" and "125MB/s" are 125,000,000.

    Raises:
        Invalid: `text` is not a rate. "GBps" and "gb/s" are none: nobody knows whether they mean bits.
    """
    match = _RATE.fullmatch(text) if len(text) <= TEXT_LENGTH_MAX else None
    if match is None:
        raise Invalid(
            f"{text[:TEXT_LENGTH_MAX]!r} is not a rate", remedy="write it like 1Gbps, 20Mbit/s or 125MB/s"
        )
    prefix = (match[2] or "").upper()
    scale = _PREFIX[prefix] if match[3] else 1000 ** "_KMGT".index(prefix or "_")
    rate_bytes_per_s = int(Decimal(match[1]) * scale / (1 if match[4] == "B/s" else 8))
    if rate_bytes_per_s > AMOUNT_MAX // 8:  # It is written in bits.
        raise Invalid(f"{text!r} is faster than any network", remedy="write it like 1Gbps, or leave it out")
    return rate_bytes_per_s


def format_rate(rate_bytes_per_s: int) -> str:
    """Write a rate in bits, in the largest unit that keeps it whole: 312500000 -> "2500Mbps"."""
    rate = rate_bytes_per_s * 8
    for power, prefix in ((4, "T"), (3, "G"), (2, "M"), (1, "K")):
        if rate and rate % 1000**power == 0:
            return f"{rate // 1000**power}{prefix}bps"
    return f"{rate}bps"


def format_byte_rate(rate_bytes_per_s: int) -> str:
    """Write a rate in bytes, in the largest unit that keeps it whole: 100000000 -> "100MB/s"."""
    for power, prefix in ((4, "T"), (3, "G"), (2, "M"), (1, "K")):
        if rate_bytes_per_s and rate_bytes_per_s % 1000**power == 0:
            return f"{rate_bytes_per_s // 1000**power}{prefix}B/s"
    return f"{rate_bytes_per_s}B/s"


def format_duration(duration_s: float) -> str:
    """Write seconds as a Go duration, to the millisecond: 5400.25 -> "1h30m0.25s"."""
    milliseconds = round(duration_s * 1000)
    if 0 < milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{hours}h"] if hours else []
    if minutes:
        parts.append(f"{minutes}m")
    if rest or not parts:
        parts.append(f"{rest / 1000:g}s")
    return "".join(parts)


def parse_duration(text: str) -> float:
    """Return the seconds that `text`, a Go duration, stands for; "0" is zero.

    Raises:
        Invalid: `text` is not a duration.
    """
    if text == "0":
        return 0.0
    parts = _DURATION.findall(text) if len(text) <= TEXT_LENGTH_MAX else []
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise Invalid(
            f"{text[:TEXT_LENGTH_MAX]!r} is not a duration", remedy="write it like 90s, 5m or 1h30m"
        )
    return sum(float(number) * _DURATION_S[unit] for number, unit in parts)
