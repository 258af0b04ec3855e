"""The users that the unix socket lets in besides root, as settings name them."""

import pwd
from typing import Annotated

from pydantic import AfterValidator

from ramet.wire_api.scopes import SCOPES


def uid_of(user: str | int) -> int:
    """Return the number of a user that is named by it, or by a name that this host knows.

    Raises:
        ValueError: it is no user.
    """
    if isinstance(user, int) or user.isdecimal():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError as error:
        raise ValueError(f"there is no user {user!r:.40}") from error


def _check_user(user: str | int) -> str | int:
    uid_of(user)
    return user


def _check_scope(scope: str) -> str:
    if scope not in SCOPES:
        raise ValueError(f"{scope!r:.40} is no scope; there are {', '.join(SCOPES)}")
    return scope


SocketUsers = dict[
    Annotated[str | int, AfterValidator(_check_user)],
    tuple[Annotated[str, AfterValidator(_check_scope)], ...],
]
"""Scopes by user."""
