"""fastotel: the SDK's spans, batched, encoded and sent in Rust."""

from __future__ import annotations

from fastotel import OTLPSpanProcessor
from opentelemetry import metrics, trace

from benchmarks.variants import stock
from benchmarks.variants.parts import Operations, Options, Served, Spans
from benchmarks.variants.shop import shop


def processor(options: Options) -> OTLPSpanProcessor:
    """Return its processor. It has no transport that drops, so it always needs an endpoint."""
    return OTLPSpanProcessor(endpoint=f"{options.endpoint}/v1/traces")


def request(options: Options) -> Served:
    """Return the app with FastAPI's own telemetry over the processor."""
    traces, meters = stock.tracer_provider(options, processor(options)), stock.meter_provider(options)
    trace.set_tracer_provider(traces)
    metrics.set_meter_provider(meters)
    return Served(app=shop(), flush=stock.flusher(traces, meters))


def operations(options: Options) -> Operations:
    """Return the spans; it has nothing else."""
    provider = stock.tracer_provider(options, processor(options))
    tracer = provider.get_tracer("bench")

    def empty() -> None:
        with tracer.start_as_current_span("price"):
            pass

    source = stock.span_source(provider)
    return Operations(each={"span, empty": empty, "span, 5 attributes": source.emit}, flush=source.flush)


def spans(options: Options) -> Spans:
    """Return a source of spans."""
    return stock.span_source(stock.tracer_provider(options, processor(options)))
