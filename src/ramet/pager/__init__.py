"""The host side of `ramet-pager`: its client, and its supervision."""

from ramet.pager.client import (
    BaseFormat,
    CacheStatistics,
    EndedSession,
    PagerClient,
    PagerHealth,
    PagerSession,
    PagerStatistics,
    SessionEnd,
    SessionPhase,
    WorkingSetUse,
)
from ramet.pager.errors import (
    BaseUnusable,
    CompletionFailed,
    NoSuchSession,
    NotServing,
    OverlayUnusable,
    PagerDraining,
    PagerFailed,
    PagerRequestInvalid,
    PagerUnreachable,
    SessionExists,
    SessionsExhausted,
)
from ramet.pager.packed import PackedMemory, pack
from ramet.pager.service import PagerService
from ramet.pager.supervisor import PagerSupervisor

__all__ = (
    "BaseFormat",
    "BaseUnusable",
    "CacheStatistics",
    "CompletionFailed",
    "EndedSession",
    "NoSuchSession",
    "NotServing",
    "OverlayUnusable",
    "PackedMemory",
    "PagerClient",
    "PagerDraining",
    "PagerFailed",
    "PagerHealth",
    "PagerRequestInvalid",
    "PagerService",
    "PagerSession",
    "PagerStatistics",
    "PagerSupervisor",
    "PagerUnreachable",
    "SessionEnd",
    "SessionExists",
    "SessionPhase",
    "SessionsExhausted",
    "WorkingSetUse",
    "pack",
)
