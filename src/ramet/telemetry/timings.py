"""The phases of one operation, a wait for a place apart from the work in it.

An operation is opened once, by whoever carries it out; what lies deeper names its part with `phase` and needs
not know of what. Each phase goes, as it ends, to the operation's own answer (`phases_ms`), to the histograms
of `ramet.telemetry.metrics`, and, where an OpenTelemetry SDK records, to a span of its own. Without one a
phase costs some microseconds.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from types import TracebackType
from typing import Final, Literal

import anyio
from opentelemetry import trace
from opentelemetry.trace import Span, Status, StatusCode
from prometheus_client import Histogram

from ramet.telemetry.metrics import OPERATION_SECONDS, PHASE_SECONDS

Kind = Literal["wait", "work"]

WAIT_SUFFIX: Final = "_wait"
SPAN_NAMES: Final = {
    "folder": "instances.write_config_disk",
    "network": "restore_network.create_allocation",
    "network_admit": "network.admit",
    "network_tap": "network.create_tap",
    "capture": "instances.wait_for_capture",
    "disk": "instances.create_layer",
    "vmm_start_wait": "restore_capacity_wait",
    "vmm_start": "hypervisor.start_process",
    "confirm_wait": "instances.confirm_capacity_wait",
    "confirm": "instances.confirm",
    "load": "restore_from_snapshot",
    "identify": "reconfigure_guest_network",
}
"""What a phase's span is called; one that is not here is called as in `timings_ms`."""

_TRACER: Final = trace.get_tracer("ramet")
_current: ContextVar["Timings | None"] = ContextVar("ramet_timings", default=None)
_current_span: ContextVar[Span | None] = ContextVar("ramet_span", default=None)


class Timings:
    """How long each phase of one operation took, in ms. `source_state` is that of what it was made from."""

    def __init__(self, operation: str, *, hypervisor: str = "", source_state: str = "") -> None:
        self.operation, self._hypervisor, self._source_state = operation, hypervisor, source_state
        self.phases_ms: dict[str, float] = {}
        self.is_recording = False
        """Whether somebody wants spans."""

    def phase(self, name: str, kind: Kind = "work") -> "_Phase":
        """Time the inside as phase `name`; one that comes again is added up."""
        return _Phase(self, name, kind)

    def note(self, name: str, seconds: float, kind: Kind = "work") -> None:
        """Add what was measured elsewhere."""
        self.phases_ms[name] = self.phases_ms.get(name, 0.0) + seconds * 1000
        _phase_seconds(self.operation, name, kind, self._hypervisor, self._source_state).observe(seconds)

    def end(self, outcome: str, seconds: float) -> None:
        """Count the whole operation."""
        labels = (self.operation, outcome, self._hypervisor, self._source_state)
        OPERATION_SECONDS.labels(*labels).observe(seconds)


@cache
def _phase_seconds(operation: str, name: str, kind: Kind, hypervisor: str, source_state: str) -> Histogram:
    phase = name.removesuffix(WAIT_SUFFIX) if kind == "wait" else name
    return PHASE_SECONDS.labels(operation, phase, kind, hypervisor, source_state)


class _Phase(AbstractContextManager[None]):
    """One phase under way."""

    __slots__ = ("_began", "_kind", "_name", "_outer", "_span", "_timings")

    def __init__(self, timings: Timings, name: str, kind: Kind) -> None:
        self._timings, self._name, self._kind = timings, name, kind
        self._span: Span | None = None

    def __enter__(self) -> None:
        if self._timings.is_recording:
            self._outer = _current_span.get()
            name = SPAN_NAMES.get(self._name, self._name)
            self._span = _start_span(name, self._outer, {"ramet.kind": self._kind})
            _current_span.set(self._span)
        self._began = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._timings.note(self._name, time.perf_counter() - self._began, self._kind)
        if self._span is not None:
            _current_span.set(self._outer)
            _end_span(self._span, exc)


@contextmanager
def operation(
    name: str, *, hypervisor: str = "", source_state: str = "", **attributes: str
) -> Iterator[Timings]:
    """Carry an operation out inside. `attributes` stand on its span only, such as ids."""
    timings = Timings(name, hypervisor=hypervisor, source_state=source_state)
    outer, outer_span = _current.get(), _current_span.get()
    facts = {"hypervisor": hypervisor, "source_state": source_state, **attributes}
    span = _start_span(name, outer_span, {f"ramet.{key}": value for key, value in facts.items() if value})
    timings.is_recording = span.is_recording()
    # Set and set back, not by token: what a task group inside cancels may end in another context.
    _current.set(timings)
    _current_span.set(span if timings.is_recording else None)
    began = time.perf_counter()
    failure: BaseException | None = None
    try:
        yield timings
    except BaseException as error:
        failure = error
        raise
    finally:
        _current.set(outer)
        _current_span.set(outer_span)
        timings.end(_outcome(failure), time.perf_counter() - began)
        _end_span(span, failure)


def phase(name: str, kind: Kind = "work") -> AbstractContextManager[None]:
    """Time the inside as a phase of whatever operation is being carried out; of none, do nothing."""
    timings = _current.get()
    return nullcontext() if timings is None else timings.phase(name, kind)


def staged(name: str, limiter: anyio.CapacityLimiter) -> AbstractAsyncContextManager[None]:
    """Hold a place of a stage inside; the wait for it and the time in it are phases apart."""
    return _Staged(name, limiter)


class _Staged(AbstractAsyncContextManager[None]):
    __slots__ = ("_limiter", "_name", "_work")

    def __init__(self, name: str, limiter: anyio.CapacityLimiter) -> None:
        self._name, self._limiter = name, limiter

    async def __aenter__(self) -> None:
        with phase(f"{self._name}{WAIT_SUFFIX}", "wait"):
            # Ourselves as the borrower: one task may be in two stages of one limiter.
            await self._limiter.acquire_on_behalf_of(self)
        self._work = phase(self._name)
        self._work.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._work.__exit__(kind, exc, tb)
        self._limiter.release_on_behalf_of(self)


def _start_span(name: str, parent: Span | None, attributes: dict[str, str]) -> Span:
    context = None if parent is None else trace.set_span_in_context(parent)
    return _TRACER.start_span(name, context=context, attributes=attributes)


def _end_span(span: Span, failure: BaseException | None) -> None:
    if isinstance(failure, Exception) and span.is_recording():
        span.record_exception(failure)
        span.set_status(Status(StatusCode.ERROR, str(failure)))
    span.end()


def _outcome(failure: BaseException | None) -> str:
    if failure is None:
        return "done"
    return "failed" if isinstance(failure, Exception) else "cancelled"
