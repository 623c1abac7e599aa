"""One item of each signal, sent to see whether an endpoint takes it."""

from __future__ import annotations

from opentelemetry import trace
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics.export import Gauge, Metric, NumberDataPoint, ScopeMetrics
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

from clew import clock
from clew.pipeline.encoding import Encoder
from clew.pipeline.providers import SCOPE
from clew.pipeline.redaction import Redactor
from clew.pipeline.resource import build_resource
from clew.pipeline.transport import OtlpTransport, Outcome
from clew.settings import Settings, Signal

NAME = "clew.doctor"


def probe(settings: Settings, signal: Signal, *, timeout_s: float) -> Outcome:
    """Send one span, log record or metric point named ``clew.doctor``, past queue and spool.

    Args:
        settings: the address and its credentials.
        signal: which of the three.
        timeout_s: how long to wait for the answer.

    Returns:
        What the endpoint made of it.
    """
    transport = OtlpTransport(settings)
    try:
        return transport.send(signal, _body(settings, signal), compressed=False, timeout_s=timeout_s)
    finally:
        transport.close()


def _body(settings: Settings, signal: Signal) -> bytes:
    resource = build_resource(settings)
    encoder = Encoder(resource, Redactor(settings.redact_keys), max_value_length=settings.max_value_length)
    now_ns = clock.now_ns()
    if signal == "traces":
        ids = RandomIdGenerator()
        context = trace.SpanContext(
            ids.generate_trace_id(),
            ids.generate_span_id(),
            is_remote=False,
            trace_flags=trace.TraceFlags(trace.TraceFlags.SAMPLED),
        )
        span = ReadableSpan(
            NAME,
            context=context,
            resource=resource,
            instrumentation_scope=SCOPE,
            start_time=now_ns,
            end_time=now_ns,
        )
        return encoder.spans([span])
    if signal == "logs":
        record = LogRecord(
            timestamp=now_ns,
            observed_timestamp=now_ns,
            severity_number=SeverityNumber.INFO,
            severity_text="INFO",
            body=NAME,
        )
        return encoder.logs([ReadableLogRecord(log_record=record, resource=resource, instrumentation_scope=SCOPE)])
    point = NumberDataPoint(attributes={}, start_time_unix_nano=now_ns, time_unix_nano=now_ns, value=1)
    metric = Metric(name=NAME, description="", unit="1", data=Gauge(data_points=[point]))
    return encoder.metrics([ScopeMetrics(scope=SCOPE, metrics=[metric], schema_url=SCOPE.schema_url or "")])
