"""The HTTP API, compatible with Hypeman's; `create_app` is the door."""

from ramet.api.app import create_app
from ramet.api.auth import TokenAuth
from ramet.api.facts import HostFacts, RuntimeFacts
from ramet.api.idempotency import KeptAnswers
from ramet.api.parts import Parts
from ramet.api.serving import HttpServer

__all__ = ("HostFacts", "HttpServer", "KeptAnswers", "Parts", "RuntimeFacts", "TokenAuth", "create_app")
