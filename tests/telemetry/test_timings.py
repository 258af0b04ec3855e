"""One record of an operation's phases, seen in its answer, as histograms and as spans."""

import sys
from collections.abc import Iterator
from contextlib import suppress

import anyio
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ramet.telemetry import metrics, timings
from ramet.telemetry.timings import operation, phase, staged
from ramet.telemetry.tracing import TracingUnavailable, send_spans


def count(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(f"{name}_count", labels) or 0.0


def phase_count(operation_name: str, name: str, kind: str = "work") -> float:
    labels = {"operation": operation_name, "phase": name, "kind": kind}
    return count("ramet_phase_seconds", hypervisor="fake", source_state="Running", **labels)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(timings, "_TRACER", provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


def test_a_phase_that_comes_again_is_added_up_and_each_time_counted() -> None:
    with operation("twice", hypervisor="fake", source_state="Running") as taken:
        taken.note("copy", 0.25)
        with taken.phase("copy"):
            pass
    assert 250 <= taken.phases_ms["copy"] < 10_000
    assert phase_count("twice", "copy") == 2


def test_a_phase_deep_below_belongs_to_the_operation_around_it() -> None:
    with operation("outer", hypervisor="fake", source_state="Running") as outer:
        with phase("mine"):
            pass
        with operation("inner") as inner, phase("its"):
            pass
        with phase("mine_again"):
            pass
    assert list(outer.phases_ms) == ["mine", "mine_again"]
    assert list(inner.phases_ms) == ["its"]


def test_a_phase_of_no_operation_is_nobodys() -> None:
    before = metrics.render()
    with phase("lonely"):
        pass
    assert b"lonely" not in before + metrics.render()


@pytest.mark.anyio
async def test_the_wait_for_a_place_is_apart_from_the_work_in_it() -> None:
    limiter = anyio.CapacityLimiter(1)
    is_in, may_leave = anyio.Event(), anyio.Event()

    async def first() -> None:
        with operation("first"):
            async with staged("stage", limiter):
                is_in.set()
                await may_leave.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(first)
        await is_in.wait()
        with operation("second", hypervisor="fake", source_state="Running") as second:

            async def take() -> None:
                async with staged("stage", limiter):
                    assert list(second.phases_ms) == ["stage_wait"]

            group.start_soon(take)
            await anyio.wait_all_tasks_blocked()
            assert second.phases_ms == {}
            may_leave.set()
    assert list(second.phases_ms) == ["stage_wait", "stage"]
    assert (phase_count("second", "stage", "wait"), phase_count("second", "stage")) == (1, 1)


@pytest.mark.anyio
async def test_a_wait_that_was_cancelled_holds_no_place() -> None:
    limiter = anyio.CapacityLimiter(1)
    async with staged("stage", limiter):
        with anyio.move_on_after(0):
            async with staged("stage", limiter):
                pass
    assert limiter.borrowed_tokens == 0


@pytest.mark.parametrize(
    ("error", "outcome"), [(None, "done"), (OSError("x"), "failed"), (KeyboardInterrupt(), "cancelled")]
)
def test_an_operation_is_counted_by_how_it_ended(error: BaseException | None, outcome: str) -> None:
    labels = {"operation": "ends", "outcome": outcome, "hypervisor": "", "source_state": ""}
    before = count("ramet_operation_seconds", **labels)
    with suppress(OSError, KeyboardInterrupt), operation("ends"):
        if error is not None:
            raise error
    assert count("ramet_operation_seconds", **labels) == before + 1


def test_each_phase_is_a_span_below_its_operation(spans: InMemorySpanExporter) -> None:
    with (
        suppress(OSError),
        operation("fork", hypervisor="fake", source_state="Running", instance="i1") as taken,
    ):
        with phase("vmm_start_wait", "wait"):
            pass
        with taken.phase("confirm"), phase("identify"):
            raise OSError("the guest is gone")
    found = {span.name: span for span in spans.get_finished_spans()}
    fork, confirm, identify = found["fork"], found["instances.confirm"], found["reconfigure_guest_network"]
    assert attributes(fork) == {
        "ramet.hypervisor": "fake",
        "ramet.source_state": "Running",
        "ramet.instance": "i1",
    }
    assert attributes(found["restore_capacity_wait"]) == {"ramet.kind": "wait"}
    assert parent(found["restore_capacity_wait"]) == parent(confirm) == fork.context.span_id
    assert parent(identify) == confirm.context.span_id
    assert not identify.status.is_ok
    assert identify.events[0].name == "exception"


def test_without_a_recorder_there_are_no_spans() -> None:
    with operation("quiet") as taken:
        assert not taken.is_recording


def test_spans_cannot_be_sent_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(TracingUnavailable) as refused:
        send_spans("http://127.0.0.1:4318/v1/traces", "ramet")
    assert refused.value.remedy is not None
    assert "ramet[otel]" in refused.value.remedy


def attributes(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


def parent(span: ReadableSpan) -> int:
    assert span.parent is not None
    return span.parent.span_id
