"""What has gone over a network interface, as the kernel counts it (/proc/net/dev)."""

from pathlib import Path
from typing import Final

_DEVICES: Final = Path("/proc/thread-self/net/dev")  # Of the caller's network namespace.
_SENT_FIELD: Final = 8  # Behind eight of what was received.


def read_traffic(name: str) -> tuple[int, int]:
    """Return the bytes that interface `name` has received and sent since it was made; 0 if there is none.

    Of a TAP what it received came from the guest.
    """
    for line in _DEVICES.read_text().splitlines():
        found, colon, counters = line.partition(":")
        if colon and found.strip() == name:
            fields = counters.split()
            return int(fields[0]), int(fields[_SENT_FIELD])
    return 0, 0
