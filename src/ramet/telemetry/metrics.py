"""What is counted, for Prometheus: how long operations and their phases take, pools, and this process."""

from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
BUCKETS_S: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0),
)

REGISTRY: Final = CollectorRegistry()
OPERATION_SECONDS: Final = Histogram(
    "ramet_operation_seconds",
    "How long operations took, by how they ended (done, failed, cancelled).",
    ("operation", "outcome", "hypervisor", "source_state"),
    buckets=BUCKETS_S,
    registry=REGISTRY,
)
PHASE_SECONDS: Final = Histogram(
    "ramet_phase_seconds",
    "How long phases of operations took: waiting for a place (wait), or in it (work).",
    ("operation", "phase", "kind", "hypervisor", "source_state"),
    buckets=BUCKETS_S,
    registry=REGISTRY,
)
BERTHS: Final = Counter(
    "ramet_fork_pool_berths",
    "Children made ahead of their fork: made, failed, discarded, taken by a fork; and forks that missed one.",
    ("outcome",),
    registry=REGISTRY,
)
BERTHS_WAITING: Final = Gauge(
    "ramet_fork_pool_waiting", "Children made ahead that wait for a fork now.", registry=REGISTRY
)
STAGE_WIDTH: Final = Gauge(
    "ramet_stage_width",
    "How many operations may be in a stage at once, as it was entered last.",
    ("stage",),
    registry=REGISTRY,
)
ProcessCollector(registry=REGISTRY)


def render() -> bytes:
    """Return all of it in Prometheus' text format."""
    return generate_latest(REGISTRY)
