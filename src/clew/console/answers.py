"""JSON forms of what queries answer.

Times are ISO 8601 in UTC next to the exact ``..._unix_nano`` as a string, since JSON readers round large numbers;
durations are seconds. Attribute values are written as `clew.console.values` says.
"""

from __future__ import annotations

from typing import Any

from clew.console.model import (
    SPAN_KINDS,
    SPAN_STATUSES,
    Exemplar,
    LogRecord,
    Metric,
    MetricPoint,
    Resource,
    Scope,
    Span,
    SpanEvent,
    SpanLink,
    utc_from_unix_nano,
)
from clew.console.queries import LinkedTrace, MetricSeries, MetricSummary, Summary, Trace, TraceSummary, TreeSpan
from clew.console.row_json import point_value_to_json
from clew.console.values import attributes_to_json, to_json_value


def summary_json(summary: Summary) -> dict[str, Any]:
    """Return the store's counts as JSON."""
    return {
        "traces": summary.traces,
        "spans": summary.spans,
        "logs": summary.logs,
        "metrics": summary.metrics,
        "metric_points": summary.metric_points,
        "errors": summary.errors,
        "services": list(summary.services),
        "stored_bytes": summary.stored_bytes,
    }


def trace_summary_json(trace: TraceSummary) -> dict[str, Any]:
    """Return a trace's one line as JSON."""
    return {
        "trace_id": trace.trace_id,
        "root_name": trace.root_name,
        "root_service": trace.root_service,
        "has_root": trace.has_root,
        **_time("start_time", trace.start_time_unix_nano),
        "duration_s": trace.duration_s,
        "span_count": trace.span_count,
        "error_count": trace.error_count,
        "services": list(trace.services),
    }


def trace_json(trace: Trace, linked: tuple[LinkedTrace, ...]) -> dict[str, Any]:
    """Return a whole trace, with the traces it is linked with, as JSON; spans are depth first with their depth."""
    return {
        **trace_summary_json(trace.summary),
        "is_cut": trace.is_cut,
        "spans": [_tree_span(item) for item in trace.spans],
        "linked_traces": [_linked_trace(item) for item in linked],
    }


def log_json(log: LogRecord) -> dict[str, Any]:
    """Return a log record as JSON."""
    return {
        **_time("time", log.time_unix_nano or log.observed_time_unix_nano),
        "observed_time_unix_nano": str(log.observed_time_unix_nano),
        "service": log.service,
        "severity_number": log.severity_number,
        "severity_text": log.severity_text,
        "body": to_json_value(log.body),
        "event_name": log.event_name,
        "trace_id": log.trace_id,
        "span_id": log.span_id,
        "attributes": attributes_to_json(log.attributes),
        "dropped_attributes_count": log.dropped_attributes_count,
        "flags": log.flags,
        **_source(log.resource, log.scope),
    }


def metric_summary_json(summary: MetricSummary) -> dict[str, Any]:
    """Return a metric's one line as JSON."""
    return {**_metric(summary.metric), "services": list(summary.services), "series_count": summary.series_count}


def metric_series_json(series: MetricSeries) -> dict[str, Any]:
    """Return one series of a metric as JSON."""
    return {
        **_metric(series.metric),
        "service": series.service,
        "attributes": attributes_to_json(series.attributes),
        "latest": _point(series.latest),
        "points": [_point(point) for point in series.points],
        **_source(series.resource, series.scope),
    }


def _tree_span(item: TreeSpan) -> dict[str, Any]:
    span = item.span
    return {
        "depth": item.depth,
        "is_orphan": item.is_orphan,
        "span_id": span.span_id,
        "parent_span_id": span.parent_span_id,
        "name": span.name,
        "kind": _named(SPAN_KINDS, span.kind),
        "service": span.service,
        **_time("start_time", span.start_time_unix_nano),
        "end_time_unix_nano": str(span.end_time_unix_nano),
        "duration_s": span.duration_s,
        "status": {"code": _named(SPAN_STATUSES, span.status_code), "message": span.status_message},
        "attributes": attributes_to_json(span.attributes),
        "events": [_event(event) for event in span.events],
        "links": [_link(link) for link in span.links],
        **_dropped(span),
        "trace_state": span.trace_state,
        "flags": span.flags,
        **_source(span.resource, span.scope),
    }


def _dropped(span: Span) -> dict[str, Any]:
    return {
        "dropped_attributes_count": span.dropped_attributes_count,
        "dropped_events_count": span.dropped_events_count,
        "dropped_links_count": span.dropped_links_count,
    }


def _event(event: SpanEvent) -> dict[str, Any]:
    return {
        "name": event.name,
        **_time("time", event.time_unix_nano),
        "attributes": attributes_to_json(event.attributes),
        "dropped_attributes_count": event.dropped_attributes_count,
    }


def _link(link: SpanLink) -> dict[str, Any]:
    return {
        "trace_id": link.trace_id,
        "span_id": link.span_id,
        "trace_state": link.trace_state,
        "attributes": attributes_to_json(link.attributes),
        "dropped_attributes_count": link.dropped_attributes_count,
        "flags": link.flags,
    }


def _linked_trace(item: LinkedTrace) -> dict[str, Any]:
    return {
        "trace_id": item.trace_id,
        "direction": item.direction,
        "span_id": item.span_id,
        "linked_span_id": item.linked_span_id,
        "attributes": attributes_to_json(item.attributes),
        "trace": None if item.summary is None else trace_summary_json(item.summary),
    }


def _metric(metric: Metric) -> dict[str, Any]:
    return {
        "name": metric.name,
        "type": metric.type,
        "unit": metric.unit,
        "description": metric.description,
        "temporality": metric.temporality,
        "is_monotonic": metric.is_monotonic,
    }


def _point(point: MetricPoint) -> dict[str, Any]:
    return {
        **_time("time", point.time_unix_nano),
        "start_time_unix_nano": str(point.start_time_unix_nano),
        "value": point_value_to_json(point.value),
        "flags": point.flags,
        "exemplars": [_exemplar(item) for item in point.exemplars],
    }


def _exemplar(item: Exemplar) -> dict[str, Any]:
    return {
        **_time("time", item.time_unix_nano),
        "value": to_json_value(item.value),
        "trace_id": item.trace_id,
        "span_id": item.span_id,
        "attributes": attributes_to_json(item.attributes),
    }


def _source(resource: Resource, scope: Scope) -> dict[str, Any]:
    return {
        "resource": {"attributes": attributes_to_json(resource.attributes), "schema_url": resource.schema_url},
        "scope": {
            "name": scope.name,
            "version": scope.version,
            "attributes": attributes_to_json(scope.attributes),
            "schema_url": scope.schema_url,
        },
    }


def _time(name: str, unix_nano: int) -> dict[str, Any]:
    moment = utc_from_unix_nano(unix_nano).isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {name: moment, f"{name}_unix_nano": str(unix_nano)}


def _named(names: tuple[str, ...], number: int) -> str | int:
    """Return the name a number stands for, or the number itself when it is newer than we are."""
    return names[number] if 0 <= number < len(names) else number
