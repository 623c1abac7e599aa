"""From OTLP metrics to the points the console stores: gauge, sum, histogram, exponential histogram, summary.

Source: https://opentelemetry.io/docs/specs/otel/metrics/data-model/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from clew.console.model import (
    Batch,
    Exemplar,
    ExponentialHistogram,
    Histogram,
    MeasuredPoint,
    Metric,
    MetricPoint,
    PointValue,
    Quantiles,
    Resource,
    Scope,
)
from clew.console.record_fields import (
    RecordRejectedError,
    Rejections,
    attributes_of,
    optional_id,
    resource_of,
    scope_of,
    time_of,
)

_NO_RECORDED_VALUE = 1  # DataPointFlags
_TEMPORALITIES = {1: "delta", 2: "cumulative"}


def metrics_batch(request: ExportMetricsServiceRequest) -> Batch:
    """Return the metric points of an export request.

    Args:
        request: a decoded request.

    Example:
        >>> len(metrics_batch(ExportMetricsServiceRequest()))
        0
    """
    points: list[MeasuredPoint] = []
    rejections = Rejections()
    for resource_metrics in request.resource_metrics:
        resource = resource_of(resource_metrics)
        for scope_metrics in resource_metrics.scope_metrics:
            scope = scope_of(scope_metrics)
            for message in scope_metrics.metrics:
                points.extend(_points(message, resource, scope, rejections))
    return Batch(points=tuple(points), rejected=rejections.count, reason=rejections.reason)


def _points(message: Any, resource: Resource, scope: Scope, rejections: Rejections) -> Iterator[MeasuredPoint]:
    kind = message.WhichOneof("data")
    if kind is None:
        return  # no points, nothing to reject
    data = getattr(message, kind)
    if not message.name:
        rejections.add("metric without a name", len(data.data_points))
        return
    metric = Metric(
        name=message.name,
        type=kind,
        unit=message.unit,
        description=message.description,
        temporality=_TEMPORALITIES.get(getattr(data, "aggregation_temporality", 0), "unspecified"),
        is_monotonic=getattr(data, "is_monotonic", False),
    )
    for point_message in data.data_points:
        try:
            yield MeasuredPoint(
                metric=metric,
                attributes=attributes_of(point_message.attributes),
                point=_point(kind, point_message),
                resource=resource,
                scope=scope,
            )
        except RecordRejectedError as error:
            rejections.add(f"metric {message.name[:80]!r}: {error}")


def _point(kind: str, message: Any) -> MetricPoint:
    return MetricPoint(
        time_unix_nano=time_of("time_unix_nano", message.time_unix_nano),
        start_time_unix_nano=time_of("start_time_unix_nano", message.start_time_unix_nano),
        value=None if message.flags & _NO_RECORDED_VALUE else _VALUES[kind](message),
        flags=message.flags,
        exemplars=tuple(_exemplars(getattr(message, "exemplars", ()))),
    )


def _number(message: Any) -> PointValue:
    kind = message.WhichOneof("value")
    value: int | float | None = None if kind is None else getattr(message, kind)
    return value


def _histogram(message: Any) -> PointValue:
    if message.bucket_counts and len(message.bucket_counts) != len(message.explicit_bounds) + 1:
        raise RecordRejectedError(
            f"{len(message.bucket_counts)} bucket counts for {len(message.explicit_bounds)} bounds: "
            "there must be one count more than bounds"
        )
    return Histogram(
        count=message.count,
        sum=_optional(message, "sum"),
        min=_optional(message, "min"),
        max=_optional(message, "max"),
        bounds=tuple(message.explicit_bounds),
        bucket_counts=tuple(message.bucket_counts),
    )


def _exponential_histogram(message: Any) -> PointValue:
    return ExponentialHistogram(
        count=message.count,
        sum=_optional(message, "sum"),
        min=_optional(message, "min"),
        max=_optional(message, "max"),
        scale=message.scale,
        zero_count=message.zero_count,
        zero_threshold=message.zero_threshold,
        positive_offset=message.positive.offset,
        positive_counts=tuple(message.positive.bucket_counts),
        negative_offset=message.negative.offset,
        negative_counts=tuple(message.negative.bucket_counts),
    )


def _quantiles(message: Any) -> PointValue:
    return Quantiles(
        count=message.count,
        sum=message.sum,
        quantiles=tuple((item.quantile, item.value) for item in message.quantile_values),
    )


_VALUES = {
    "gauge": _number,
    "sum": _number,
    "histogram": _histogram,
    "exponential_histogram": _exponential_histogram,
    "summary": _quantiles,
}


def _optional(message: Any, field: str) -> float | None:
    return getattr(message, field) if message.HasField(field) else None


def _exemplars(messages: Iterable[Any]) -> Iterator[Exemplar]:
    for message in messages:
        kind = message.WhichOneof("value")
        if kind is None:
            continue
        yield Exemplar(
            time_unix_nano=time_of("exemplars.time_unix_nano", message.time_unix_nano),
            value=getattr(message, kind),
            trace_id=optional_id("exemplars.trace_id", message.trace_id, 16),
            span_id=optional_id("exemplars.span_id", message.span_id, 8),
            attributes=attributes_of(message.filtered_attributes),
        )
