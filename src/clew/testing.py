"""A pytest plugin: ``captured_telemetry`` gives what the app emitted, as it would have left the process, as plain objects.

Example::

    def test_checkout(captured_telemetry):
        checkout()
        assert [span.name for span in captured_telemetry.spans] == ["charge", "checkout"]
        assert captured_telemetry.metric("orders.placed").value == 1
"""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanMessage
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from clew.engine import ending, runtime
from clew.engine.summary import SeriesSummary, summary
from clew.pipeline.transport import Outcome
from clew.settings import Signal


@dataclass(frozen=True, kw_only=True)
class CapturedLink:
    """A link of a span to another."""

    trace_id: str
    span_id: str


@dataclass(frozen=True, kw_only=True)
class CapturedEvent:
    """Something that happened within a span."""

    name: str
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CapturedSpan:
    """A finished span.

    Attributes:
        parent_id: the parent's span id, or ``""`` for the root of a trace.
        kind: ``internal``, ``server``, ``client``, ``producer`` or ``consumer``.
        status: ``unset``, ``ok`` or ``error``.
        scope: the instrumentation that made it.
        resource: what produced it: the service, its instance, its process.
    """

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    kind: str
    status: str
    status_message: str
    start_ns: int
    end_ns: int
    scope: str
    attributes: dict[str, Any] = field(default_factory=dict)
    events: tuple[CapturedEvent, ...] = ()
    links: tuple[CapturedLink, ...] = ()
    resource: dict[str, Any] = field(default_factory=dict)

    @property
    def duration_s(self) -> float:
        """How long it took, in seconds."""
        return (self.end_ns - self.start_ns) / 1e9


@dataclass(frozen=True, kw_only=True)
class CapturedLog:
    """A log record."""

    body: str
    severity: str
    logger: str
    trace_id: str
    span_id: str
    time_ns: int
    attributes: dict[str, Any] = field(default_factory=dict)
    resource: dict[str, Any] = field(default_factory=dict)


class MemoryTransport:
    """Keeps encoded batches instead of sending them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bodies: list[tuple[Signal, bytes]] = []

    def send(self, signal: Signal, body: bytes, *, compressed: bool, timeout_s: float) -> Outcome:
        """Keep one batch."""
        with self._lock:
            self._bodies.append((signal, gzip.decompress(body) if compressed else body))
        return Outcome(delivered=True)

    def cancel(self) -> None:
        """Nothing ever waits here."""

    def close(self) -> None:
        """Nothing to let go of."""

    def bodies(self, signal: Signal) -> list[bytes]:
        """Return the batches of one signal, in order."""
        with self._lock:
            return [body for name, body in self._bodies if name == signal]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._bodies.clear()


class CapturedTelemetry:
    """What the app emitted so far: redacted and coerced, as it would have left the process."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport

    @property
    def spans(self) -> list[CapturedSpan]:
        """The finished spans, in the order in which they ended."""
        ending.flush()
        return [span for body in self._transport.bodies("traces") for span in read_spans(body)]

    @property
    def logs(self) -> list[CapturedLog]:
        """The log records, in the order in which they were written."""
        ending.flush()
        records = [record for body in self._transport.bodies("logs") for record in read_logs(body)]
        return sorted(records, key=lambda record: record.time_ns)

    @property
    def metrics(self) -> list[SeriesSummary]:
        """Every series of every metric, as it stands."""
        return summary()

    def span(self, name: str) -> CapturedSpan:
        """Return the one span of a name.

        Raises:
            AssertionError: there is none, or more than one; the message has the names that there are.
        """
        found = [span for span in self.spans if span.name == name]
        assert len(found) == 1, f"{len(found)} spans are named {name!r}; there are {[span.name for span in self.spans]}"
        return found[0]

    def metric(self, name: str, **labels: Any) -> SeriesSummary:
        """Return the one series of a metric that has these labels.

        Args:
            labels: label values; a dot in a label's name is written as two underscores.

        Raises:
            AssertionError: there is none, or more than one; the message has the series that there are.
        """
        wanted = {key.replace("__", "."): value for key, value in labels.items()}
        series = summary(name)
        found = [item for item in series if all(item.labels.get(key) == value for key, value in wanted.items())]
        assert len(found) == 1, f"{len(found)} series of {name!r} have {wanted}; there are {[s.labels for s in series]}"
        return found[0]

    def clear(self) -> None:
        """Forget the spans and logs so far; metrics go on counting."""
        ending.flush()
        self._transport.clear()


@pytest.fixture
def captured_telemetry() -> Iterator[CapturedTelemetry]:
    """Telemetry of one test, in strict mode, kept in memory. Nothing leaves the process and nothing needs a clean-up."""
    transport = MemoryTransport()
    with runtime.capture(transport):
        yield CapturedTelemetry(transport)


def read_spans(body: bytes) -> list[CapturedSpan]:
    """Return the spans of an OTLP request.

    Args:
        body: an encoded ``ExportTraceServiceRequest``.
    """
    return [
        _span(span, scope.scope.name, read_attributes(resource.resource.attributes))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def read_logs(body: bytes) -> list[CapturedLog]:
    """Return the log records of an OTLP request.

    Args:
        body: an encoded ``ExportLogsServiceRequest``.
    """
    return [
        CapturedLog(
            body=_value(record.body),
            severity=record.severity_text,
            logger=scope.scope.name,
            trace_id=record.trace_id.hex(),
            span_id=record.span_id.hex(),
            time_ns=record.time_unix_nano,
            attributes=read_attributes(record.attributes),
            resource=read_attributes(resource.resource.attributes),
        )
        for resource in ExportLogsServiceRequest.FromString(body).resource_logs
        for scope in resource.scope_logs
        for record in scope.log_records
    ]


def read_attributes(attributes: Any) -> dict[str, Any]:
    """Return OTLP's key-value pairs as a dictionary."""
    return {attribute.key: _value(attribute.value) for attribute in attributes}


def _span(span: SpanMessage, scope: str, resource: dict[str, Any]) -> CapturedSpan:
    return CapturedSpan(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        kind=SpanMessage.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        status=Status.StatusCode.Name(span.status.code).removeprefix("STATUS_CODE_").lower(),
        status_message=span.status.message,
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        scope=scope,
        attributes=read_attributes(span.attributes),
        events=tuple(
            CapturedEvent(name=event.name, attributes=read_attributes(event.attributes)) for event in span.events
        ),
        links=tuple(CapturedLink(trace_id=link.trace_id.hex(), span_id=link.span_id.hex()) for link in span.links),
        resource=resource,
    )


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return read_attributes(value.kvlist_value.values)
    return getattr(value, kind) if kind else None
