"""A client of the API for Python programs: `Client`."""

from ramet.client.client import Client
from ramet.client.endpoint import Endpoint
from ramet.client.errors import ApiError, ConnectionBroken, NotReachable

__all__ = ("ApiError", "Client", "ConnectionBroken", "Endpoint", "NotReachable")
