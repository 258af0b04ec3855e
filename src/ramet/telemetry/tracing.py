"""Sending spans to a collector by OTLP, where the extra `otel` is installed and a setting asks for it."""

from collections.abc import Callable

from opentelemetry import trace

from ramet.core.errors import Broken


class TracingUnavailable(Broken):
    """Spans are to be sent, and what sends them is not installed."""

    code = "tracing_unavailable"


def send_spans(endpoint: str, service_name: str) -> Callable[[], None]:
    """Send every span of this process to `endpoint`, from a thread; returns what sends the rest and ends it.

    Args:
        endpoint: URL of an OTLP collector over HTTP, such as http://127.0.0.1:4318/v1/traces.

    Raises:
        TracingUnavailable: OpenTelemetry's SDK is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingUnavailable(
            f"spans cannot be sent: {error}", remedy="pip install 'ramet[otel]', or set otel.enabled to false"
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": service_name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    trace.set_tracer_provider(provider)
    return provider.shutdown
