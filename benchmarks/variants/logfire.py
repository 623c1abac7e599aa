"""logfire, with OTLP exporters in place of its own service."""

from __future__ import annotations

import os
from typing import Any

import logfire
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from benchmarks.variants import stock
from benchmarks.variants.parts import Operations, Options, Served, Spans
from benchmarks.variants.shop import shop


def configure(options: Options) -> None:
    """Set it up; nothing goes to its makers' service, nothing to the terminal."""
    os.environ["LOGFIRE_IGNORE_NO_CONFIG"] = "1"
    logfire.configure(
        send_to_logfire=False,
        console=False,
        service_name="bench",
        inspect_arguments=False,
        additional_span_processors=[BatchSpanProcessor(stock.span_exporter(options))],
        metrics=logfire.MetricsOptions(
            additional_readers=[PeriodicExportingMetricReader(stock.metric_exporter(options))]
        ),
        sampling=logfire.SamplingOptions(head=options.share),
        distributed_tracing=True,
    )


def flush() -> None:
    """Send everything."""
    logfire.force_flush(60_000)


def request(options: Options) -> Served:
    """Return the app with its instrumentation."""
    configure(options)
    app = shop()
    logfire.instrument_fastapi(app)
    return Served(app=app, flush=flush)


def operations(options: Options) -> Operations:
    """Return what an app calls most."""
    configure(options)
    counter = logfire.metric_counter("bench.orders", unit="{order}")
    histogram = logfire.metric_histogram("bench.duration", unit="s")

    def empty() -> None:
        with logfire.span("price"):
            pass

    def five() -> None:
        with logfire.span("price", sku="A-17", amount=12.5, count=3, channel="web", express=True):
            pass

    return Operations(
        each={
            "span, empty": empty,
            "span, 5 attributes": five,
            "counter, by keyword": lambda: counter.add(1, {"channel": "web", "kind": "new"}),
            "histogram, bound": lambda: histogram.record(0.25, {"channel": "web", "kind": "new"}),
            "log line to OTLP": lambda: logfire.info("order.placed", order_id=7, channel="web"),
        },
        flush=flush,
    )


def spans(options: Options) -> Spans:
    """Return a source of spans."""
    configure(options)

    def emit() -> None:
        with logfire.span("price", sku="A-17", amount=12.5, count=3, channel="web", express=True):
            pass

    def emit_request() -> None:
        with logfire.span("place order", sku="A-17", amount=12.5, count=3, channel="web", express=True):
            emit()

    def shutdown(**_more: Any) -> None:
        logfire.shutdown()

    return Spans(emit=emit, emit_request=emit_request, flush=flush, shutdown=shutdown)
