"""From OTLP messages to the records the console stores, leaving out, and counting, those that cannot be right.

Source: https://github.com/open-telemetry/opentelemetry-proto (v1), https://opentelemetry.io/docs/specs/otlp/#partial-success
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from clew.console.metric_records import metrics_batch
from clew.console.model import Batch, LogRecord, Resource, Scope, Span, SpanEvent, SpanLink
from clew.console.otlp import ExportRequest
from clew.console.record_fields import (
    RecordRejectedError,
    Rejections,
    attributes_of,
    optional_id,
    required_id,
    resource_of,
    scope_of,
    time_of,
    value_of,
)


def batch_from(request: ExportRequest) -> Batch:
    """Return the records of an export request.

    Args:
        request: a decoded request of any of the three signals.

    Example:
        >>> len(batch_from(ExportTraceServiceRequest()))
        0
    """
    if isinstance(request, ExportTraceServiceRequest):
        return _spans_batch(request)
    if isinstance(request, ExportLogsServiceRequest):
        return _logs_batch(request)
    return metrics_batch(request)


def _spans_batch(request: ExportTraceServiceRequest) -> Batch:
    spans: list[Span] = []
    rejections = Rejections()
    for resource_spans in request.resource_spans:
        resource = resource_of(resource_spans)
        for scope_spans in resource_spans.scope_spans:
            scope = scope_of(scope_spans)
            for message in scope_spans.spans:
                try:
                    spans.append(_span(message, resource, scope))
                except RecordRejectedError as error:
                    rejections.add(f"span {message.name[:80]!r}: {error}")
    return Batch(spans=tuple(spans), rejected=rejections.count, reason=rejections.reason)


def _span(message: Any, resource: Resource, scope: Scope) -> Span:
    links, bad_links = _links(message.links)
    return Span(
        trace_id=required_id("trace_id", message.trace_id, 16),
        span_id=required_id("span_id", message.span_id, 8),
        parent_span_id=optional_id("parent_span_id", message.parent_span_id, 8),
        trace_state=message.trace_state,
        flags=message.flags,
        name=message.name,
        kind=message.kind,
        start_time_unix_nano=time_of("start_time_unix_nano", message.start_time_unix_nano),
        end_time_unix_nano=time_of("end_time_unix_nano", message.end_time_unix_nano),
        status_code=message.status.code,
        status_message=message.status.message,
        attributes=attributes_of(message.attributes),
        events=tuple(
            SpanEvent(
                name=event.name,
                time_unix_nano=time_of("events.time_unix_nano", event.time_unix_nano),
                attributes=attributes_of(event.attributes),
                dropped_attributes_count=event.dropped_attributes_count,
            )
            for event in message.events
        ),
        links=links,
        dropped_attributes_count=message.dropped_attributes_count,
        dropped_events_count=message.dropped_events_count,
        dropped_links_count=message.dropped_links_count + bad_links,
        resource=resource,
        scope=scope,
    )


def _links(messages: Iterable[Any]) -> tuple[tuple[SpanLink, ...], int]:
    """Return the links, and how many pointed nowhere: a broken link is no reason to lose its span."""
    links: list[SpanLink] = []
    bad = 0
    for message in messages:
        try:
            links.append(
                SpanLink(
                    trace_id=required_id("links.trace_id", message.trace_id, 16),
                    span_id=required_id("links.span_id", message.span_id, 8),
                    trace_state=message.trace_state,
                    attributes=attributes_of(message.attributes),
                    dropped_attributes_count=message.dropped_attributes_count,
                    flags=message.flags,
                )
            )
        except RecordRejectedError:
            bad += 1
    return tuple(links), bad


def _logs_batch(request: ExportLogsServiceRequest) -> Batch:
    logs: list[LogRecord] = []
    rejections = Rejections()
    for resource_logs in request.resource_logs:
        resource = resource_of(resource_logs)
        for scope_logs in resource_logs.scope_logs:
            scope = scope_of(scope_logs)
            for message in scope_logs.log_records:
                try:
                    logs.append(_log_record(message, resource, scope))
                except RecordRejectedError as error:
                    rejections.add(f"log record: {error}")
    return Batch(logs=tuple(logs), rejected=rejections.count, reason=rejections.reason)


def _log_record(message: Any, resource: Resource, scope: Scope) -> LogRecord:
    return LogRecord(
        time_unix_nano=time_of("time_unix_nano", message.time_unix_nano),
        observed_time_unix_nano=time_of("observed_time_unix_nano", message.observed_time_unix_nano),
        severity_number=message.severity_number,
        severity_text=message.severity_text,
        body=value_of(message.body),
        attributes=attributes_of(message.attributes),
        dropped_attributes_count=message.dropped_attributes_count,
        flags=message.flags,
        trace_id=optional_id("trace_id", message.trace_id, 16),
        span_id=optional_id("span_id", message.span_id, 8),
        event_name=message.event_name,
        resource=resource,
        scope=scope,
    )
