"""Who may ask on the unix socket: the kernel says who is at its other end, the settings for what.

Root and the daemon's own user may do everything. Where nobody else is listed, the socket's mode keeps all
others away as well; where somebody is, everybody can connect, and who is not listed is refused.
"""

import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from starlette.types import Scope

from ramet.api.auth import Refused, allows

PEER: Final = "ramet.peer"
"""Where in an ASGI scope's state it stands who is at the other end."""
ROOT: Final = 0

_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred


@dataclass(frozen=True, slots=True)
class Peer:
    """A process as it was when it connected."""

    pid: int
    uid: int
    gid: int


def peer_of(connection: socket.socket) -> Peer:
    """Return who is at the other end of a connected unix socket."""
    return Peer(
        *_CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    )


@dataclass(frozen=True, slots=True)
class PeerAuth:
    """Lets in root and our own user for everything, others for what `scopes` lists by their uid."""

    scopes: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def admit(self, scope: Scope, needed: str | None) -> str:
        """Return who asks, empty where that is us; see `ramet.api.auth.Auth`."""
        peer: Peer = scope["state"][PEER]
        if peer.uid in (ROOT, os.geteuid()):
            return ""
        allowed = self.scopes.get(peer.uid)
        if allowed is None:
            raise Refused(
                HTTPStatus.FORBIDDEN,
                f"User {peer.uid} may not use this socket",
                "ask as root, or list the user in the setting socket_users",
                needed,
            )
        if needed is not None and not allows(allowed, needed):
            raise Refused(
                HTTPStatus.FORBIDDEN,
                f"User {peer.uid} is not allowed {needed}",
                f"ask as root, or add {needed} to the user in the setting socket_users",
                needed,
            )
        return f"uid {peer.uid}"
