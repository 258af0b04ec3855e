"""The host side of `ramet-pager`: its client, and its supervision."""

from ramet.pager.client import (
    EndedSession,
    PagerClient,
    PagerHealth,
    PagerSession,
    PagerStatistics,
    SessionEnd,
    SessionPhase,
)
from ramet.pager.errors import (
    BaseUnusable,
    NoSuchSession,
    PagerDraining,
    PagerFailed,
    PagerRequestInvalid,
    PagerUnreachable,
    SessionExists,
    SessionsExhausted,
)
from ramet.pager.supervisor import PagerSupervisor

__all__ = (
    "BaseUnusable",
    "EndedSession",
    "NoSuchSession",
    "PagerClient",
    "PagerDraining",
    "PagerFailed",
    "PagerHealth",
    "PagerRequestInvalid",
    "PagerSession",
    "PagerStatistics",
    "PagerSupervisor",
    "PagerUnreachable",
    "SessionEnd",
    "SessionExists",
    "SessionPhase",
    "SessionsExhausted",
)
