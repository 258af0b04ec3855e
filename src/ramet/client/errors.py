"""What can go wrong between a caller and a server."""

from ramet.core.errors import Broken, RametError
from ramet.wire_api.errors import Error


class ApiError(RametError):
    """The server refused, or failed. `error` is what it said, `status` the HTTP status it said it with."""

    code = "api_error"

    def __init__(self, status: int, error: Error) -> None:
        super().__init__(error.message, remedy=error.remedy or "", **(error.fields or {}))
        self.status = status
        self.error = error


class NotReachable(Broken):
    """Nobody listens where the server should be."""

    code = "not_reachable"


class ConnectionBroken(Broken):
    """The server went away in the middle, was too slow, or said something that is not HTTP."""

    code = "connection_broken"
