"""What a token may allow: `resource:action`, or everything.

A token without a `permissions` claim allows everything, one with an empty claim nothing.
"""

from typing import Final

RESOURCES: Final = ("instance", "image", "volume", "snapshot", "build", "device", "ingress")
ACTIONS: Final = ("read", "write", "delete")
EVERYTHING: Final = "*"
SCOPES: Final = (
    *(f"{resource}:{action}" for resource in RESOURCES for action in ACTIONS),
    "resource:read",
    "resource:write",
    EVERYTHING,
)

ALGORITHM: Final = "HS256"
SECRET_BYTES_MIN: Final = 32  # RFC 7518, 3.2: a key as long as the hash.
