"""From finished spans, log records and metric points to OTLP bytes, redacted on the way.

The stock encoder does the work. Nothing outside this module knows how a batch becomes bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.sdk._logs import ReadableLogRecord
from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import TraceFlags

from clew.pipeline.records import LogItem
from clew.pipeline.redaction import REDACTED, Redactor


class Encoder:
    """Encodes batches for one resource.

    Args:
        resource: what every batch is stamped with: a forked child stamps what it inherited as its own.
        redactor: replaces secrets in keys, values, names and messages.
    """

    def __init__(self, resource: Resource, redactor: Redactor) -> None:
        self._resource = resource
        self._redactor = redactor
        encoded = encode_metrics(_one_resource(resource, ())).resource_metrics[0].resource
        self._redact_attributes(encoded.attributes)
        self._resource_message = encoded

    def spans(self, spans: Sequence[ReadableSpan]) -> bytes:
        """Encode finished spans as an ``ExportTraceServiceRequest``."""
        request = encode_spans(spans)
        for resource_spans in request.resource_spans:
            resource_spans.resource.CopyFrom(self._resource_message)
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    span.name = self._redactor.text(span.name)
                    if span.status.message:
                        span.status.message = self._redactor.text(span.status.message)
                    self._redact_attributes(span.attributes)
                    for event in span.events:
                        event.name = self._redactor.text(event.name)
                        self._redact_attributes(event.attributes)
                    for link in span.links:
                        self._redact_attributes(link.attributes)
        return bytes(request.SerializeToString())

    def logs(self, records: Sequence[ReadableLogRecord]) -> bytes:
        """Encode log records as an ``ExportLogsServiceRequest``."""
        request = encode_logs([self._stock(record) if isinstance(record, LogItem) else record for record in records])
        for resource_logs in request.resource_logs:
            resource_logs.resource.CopyFrom(self._resource_message)
            for scope_logs in resource_logs.scope_logs:
                for record in scope_logs.log_records:
                    self._redact_value(record.body)
                    self._redact_attributes(record.attributes)
        return bytes(request.SerializeToString())

    def _stock(self, item):
        if callable(item.attributes):
            item = item._replace(attributes=item.attributes())
        return ReadableLogRecord(
            log_record=LogRecord(
                timestamp=item.time_ns,
                observed_timestamp=item.time_ns,
                trace_id=item.trace_id,
                span_id=item.span_id,
                trace_flags=TraceFlags(item.trace_flags),
                severity_text=item.severity_text,
                severity_number=SeverityNumber(item.severity_number),
                body=item.body,
                attributes={k: "" if v is None else v for k, v in item.attributes.items()},
            ),
            resource=self._resource,
            instrumentation_scope=item.scope,
        )

    def metrics(self, scopes: Sequence[ScopeMetrics]) -> bytes:
        """Encode metric points as an ``ExportMetricsServiceRequest``."""
        request = encode_metrics(_one_resource(self._resource, scopes))
        for resource_metrics in request.resource_metrics:
            resource_metrics.resource.CopyFrom(self._resource_message)
            for scope_metrics in resource_metrics.scope_metrics:
                for metric in scope_metrics.metrics:
                    kind = metric.WhichOneof("data")
                    for point in getattr(metric, kind).data_points if kind else ():
                        self._redact_attributes(point.attributes)
        return bytes(request.SerializeToString())

    def _redact_attributes(self, attributes: Iterable[KeyValue]) -> None:
        for attribute in attributes:
            if self._redactor.is_secret(attribute.key):
                attribute.value.Clear()
                attribute.value.string_value = REDACTED
            else:
                self._redact_value(attribute.value)

    def _redact_value(self, value: AnyValue) -> None:
        kind = value.WhichOneof("value")
        if kind == "string_value":
            shown = self._redactor.text(value.string_value)
            if shown is not value.string_value:
                value.string_value = shown
        elif kind == "array_value":
            for item in value.array_value.values:
                self._redact_value(item)
        elif kind == "kvlist_value":
            self._redact_attributes(value.kvlist_value.values)


def point_count(scopes: Iterable[ScopeMetrics]) -> int:
    """Return how many metric points a collection holds."""
    return sum(len(_points(metric.data)) for scope in scopes for metric in scope.metrics)


def _points(data: Any) -> Sequence[Any]:
    points: Sequence[Any] = data.data_points
    return points


def _one_resource(resource: Resource, scopes: Sequence[ScopeMetrics]) -> MetricsData:
    return MetricsData(
        resource_metrics=[
            ResourceMetrics(resource=resource, scope_metrics=scopes, schema_url=resource.schema_url),
        ]
    )
