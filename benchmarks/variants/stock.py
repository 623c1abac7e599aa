"""The OpenTelemetry SDK with its own exporters, and the ways to instrument FastAPI with it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, cast

from opentelemetry import metrics, trace
from opentelemetry._logs import SeverityNumber, set_logger_provider
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter, LogRecordExportResult
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from benchmarks.variants.parts import Labels, Messages, Operations, Options, Served, Spans
from benchmarks.variants.shop import shop

RESOURCE = Resource.create({"service.name": "bench"})


class DroppedSpans(SpanExporter):
    """Takes spans and drops them."""

    def export(self, spans: Any) -> SpanExportResult:
        """Take a batch."""
        return SpanExportResult.SUCCESS


class DroppedMetrics(MetricExporter):
    """Takes metric points and drops them."""

    def export(self, metrics_data: Any, timeout_millis: float = 10_000, **_more: Any) -> MetricExportResult:
        """Take the points of now."""
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Have nothing to send."""
        return True

    def shutdown(self, timeout_millis: float = 30_000, **_more: Any) -> None:
        """Have nothing to end."""


class DroppedLogs(LogRecordExporter):
    """Takes log records and drops them."""

    def export(self, batch: Any) -> LogRecordExportResult:
        """Take a batch."""
        return LogRecordExportResult.SUCCESS

    def force_flush(self, timeout_millis: int = 10_000) -> bool:
        """Have nothing to send."""
        return True

    def shutdown(self) -> None:
        """Have nothing to end."""


def span_exporter(options: Options) -> SpanExporter:
    """Return the exporter of an endpoint and a protocol; without an endpoint one that drops everything."""
    if not options.endpoint:
        return DroppedSpans()
    if options.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc

        return cast("SpanExporter", Grpc(endpoint=options.endpoint, insecure=True))
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http

    return cast("SpanExporter", Http(endpoint=f"{options.endpoint}/v1/traces"))


def tracer_provider(options: Options, processor: SpanProcessor | None = None) -> TracerProvider:
    """Return a provider that samples the share of the options."""
    provider = TracerProvider(resource=RESOURCE, sampler=ParentBased(TraceIdRatioBased(options.share)))
    provider.add_span_processor(processor or BatchSpanProcessor(span_exporter(options)))
    return provider


def metric_exporter(options: Options) -> MetricExporter:
    """Return the exporter of an endpoint, or one that drops everything."""
    if not options.endpoint:
        return DroppedMetrics()
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    return cast("MetricExporter", OTLPMetricExporter(endpoint=f"{options.endpoint}/v1/metrics"))


def meter_provider(options: Options) -> MeterProvider:
    """Return a provider that exports as often as the SDK does by default."""
    return MeterProvider(resource=RESOURCE, metric_readers=[PeriodicExportingMetricReader(metric_exporter(options))])


def flusher(*providers: Any) -> Callable[[], object]:
    """Return what flushes all of them."""

    def flush() -> None:
        for provider in providers:
            provider.force_flush(60_000)

    return flush


def request(options: Options) -> Served:
    """Return the app with contrib's instrumentation, or with FastAPI's own (mode ``fastapi``)."""
    if options.mode == "tuned":
        os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "http"
    traces, meters = tracer_provider(options), meter_provider(options)
    trace.set_tracer_provider(traces)
    metrics.set_meter_provider(meters)
    app = shop()
    if options.mode != "fastapi":
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

        FastAPIInstrumentor.instrument_app(app, exclude_spans=["send", "receive"] if options.mode == "tuned" else None)
    return Served(app=app, flush=flusher(traces, meters))


def operations(options: Options) -> Operations:
    """Return what an app calls most."""
    from opentelemetry.instrumentation.logging.handler import LoggingHandler

    traces, meters = tracer_provider(options), meter_provider(options)
    trace.set_tracer_provider(traces)
    logs = LoggerProvider(resource=RESOURCE)
    logs.add_log_record_processor(BatchLogRecordProcessor(DroppedLogs()))
    set_logger_provider(logs)
    tracer, meter, emitter = traces.get_tracer("bench"), meters.get_meter("bench"), logs.get_logger("bench")
    counter = meter.create_counter("bench.orders", unit="{order}")
    histogram = meter.create_histogram("bench.duration", unit="s")
    label = {"channel": "web", "kind": "new"}
    logger = logging.getLogger("bench")
    logger.addHandler(LoggingHandler(logger_provider=logs))
    logger.setLevel(logging.INFO)
    logger.propagate = False

    def empty() -> None:
        with tracer.start_as_current_span("price"):
            pass

    def five() -> None:
        attributes: dict[str, Any] = {"sku": "A-17", "amount": 12.5, "count": 3, "channel": "web", "express": True}
        with tracer.start_as_current_span("price", attributes=attributes):
            pass

    def emit_log() -> None:
        attributes: dict[str, Any] = {"order_id": 7, "channel": "web"}
        emitter.emit(severity_number=SeverityNumber.INFO, body="order.placed", attributes=attributes)

    return Operations(
        each={
            "span, empty": empty,
            "span, 5 attributes": five,
            "counter, by keyword": lambda: counter.add(1, {"channel": "web", "kind": "new"}),
            "counter, bound": lambda: counter.add(1, label),
            "histogram, bound": lambda: histogram.record(0.25, label),
            "log line to OTLP": lambda: logger.info("order.placed", extra={"order_id": 7, "channel": "web"}),
            "log record to OTLP, by the API": emit_log,
        },
        flush=flusher(traces, meters, logs),
    )


def span_source(provider: TracerProvider) -> Spans:
    """Return a source of spans of a provider."""
    tracer = provider.get_tracer("bench")

    def emit() -> None:
        attributes: dict[str, Any] = {"sku": "A-17", "amount": 12.5, "count": 3, "channel": "web", "express": True}
        with tracer.start_as_current_span("price", attributes=attributes):
            pass

    def emit_request() -> None:
        attributes: dict[str, Any] = {"sku": "A-17", "amount": 12.5, "count": 3, "channel": "web", "express": True}
        with tracer.start_as_current_span("place order", attributes=attributes):
            emit()

    return Spans(emit=emit, emit_request=emit_request, flush=flusher(provider), shutdown=provider.shutdown)


def spans(options: Options) -> Spans:
    """Return a source of spans."""
    return span_source(tracer_provider(options))


def labels(options: Options) -> Labels:
    """Return a counter and a histogram of one label."""
    meter = meter_provider(options).get_meter("bench")
    counter = meter.create_counter("bench.orders", unit="{order}")
    histogram = meter.create_histogram("bench.duration", unit="s")

    def add(value: str) -> None:
        counter.add(1, {"customer": value})
        histogram.record(0.25, {"customer": value})

    return Labels(add=add)


def messages(options: Options) -> Messages:
    """Return FastStream with its own middleware for OpenTelemetry."""
    from faststream.redis.opentelemetry import RedisTelemetryMiddleware

    from benchmarks.variants.exchange import exchange

    traces, meters = tracer_provider(options), meter_provider(options)
    middleware = RedisTelemetryMiddleware(tracer_provider=traces, meter_provider=meters)
    return exchange(options.valkey, middlewares=[middleware], flush=flusher(traces, meters))
