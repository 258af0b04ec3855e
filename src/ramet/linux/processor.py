"""What this host's processors are: a guest that was shown one goes on only on another that can as much."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

CPUINFO: Final = Path("/proc/cpuinfo")
_NAMES: Final = ("vendor_id", "cpu family", "model", "stepping")
_DIGEST_CHARS: Final = 8


@cache
def read_processor(cpuinfo: Path = CPUINFO) -> str:
    """Return what tells the first processor from others, e.g. "GenuineIntel 6 143 8 5f9e3c1a".

    The last word is of its features; proc_cpuinfo(5) names them.
    """
    told: dict[str, str] = {}
    for line in cpuinfo.read_text().partition("\n\n")[0].splitlines():
        name, _, value = line.partition(":")
        told[name.strip()] = value.strip()
    features = " ".join(sorted(told.get("flags", "").split()))
    digest = hashlib.sha256(features.encode()).hexdigest()[:_DIGEST_CHARS]
    return " ".join([*(told.get(name, "?") for name in _NAMES), digest])
