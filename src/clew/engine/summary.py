"""The in-process summary: what the metrics say right now, without any backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any

from opentelemetry.sdk.metrics.export import (
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Histogram,
    HistogramDataPoint,
    Metric,
    Sum,
)

from clew.engine.aggregation import upper_bound
from clew.engine.runtime import ready


@dataclass(frozen=True, kw_only=True)
class SeriesSummary:
    """One series of a metric.

    Attributes:
        name: the metric's name.
        unit: its unit.
        type: ``counter``, ``up_down_counter``, ``gauge`` or ``histogram``.
        labels: what tells the series from its siblings.
        value: the total of a counter, the latest value of a gauge, the mean of a histogram.
        count: measurements of a histogram; else 0.
        sum: sum of a histogram's measurements; else the value.
        p50: median, in the metric's unit; ``None`` where there is no distribution. The percentiles are estimated by interpolation
            within buckets, as Prometheus's ``histogram_quantile`` does, and lie between the least and the greatest measurement.
        p95: 95th percentile.
        p99: 99th percentile.
    """

    name: str
    unit: str
    type: str
    labels: dict[str, Any] = field(default_factory=dict)
    value: float
    count: int = 0
    sum: float = 0.0
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


def summary(name: str | None = None) -> list[SeriesSummary]:
    """Return the metrics of this process as they stand: of clew, of the app, and of the libraries it uses.

    Args:
        name: only the series of this metric.

    Example:
        >>> import clew
        >>> clew.histogram("render.duration", unit="s").record(0.2)
        >>> clew.summary("render.duration")[0].count
        1
    """
    pipeline = ready().pipeline
    if pipeline is None:
        return []
    return [
        _series(metric, point)
        for scope in pipeline.collect()
        for metric in scope.metrics
        if name is None or metric.name == name
        for point in metric.data.data_points
    ]


def _series(metric: Metric, point: Any) -> SeriesSummary:
    data = metric.data
    labels = dict(point.attributes or {})
    unit = metric.unit or ""
    if isinstance(data, (Histogram, ExponentialHistogram)):
        return SeriesSummary(
            name=metric.name,
            unit=unit,
            type="histogram",
            labels=labels,
            value=point.sum / point.count if point.count else 0.0,
            count=point.count,
            sum=point.sum,
            p50=quantile(0.50, point),
            p95=quantile(0.95, point),
            p99=quantile(0.99, point),
        )
    kind = ("counter" if data.is_monotonic else "up_down_counter") if isinstance(data, Sum) else "gauge"
    return SeriesSummary(name=metric.name, unit=unit, type=kind, labels=labels, value=point.value, sum=point.value)


def quantile(share: float, point: HistogramDataPoint | ExponentialHistogramDataPoint) -> float | None:
    """Return the value below which ``share`` of a histogram's measurements lie, estimated within its bucket.

    Args:
        share: from 0 to 1.
        point: one series of a histogram.

    Source: https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile
    """
    if not point.count:
        return None
    rank = share * point.count
    seen = 0
    for low, high, in_bucket in _ranges(point):
        if in_bucket and seen + in_bucket >= rank:
            least, greatest = max(low, point.min), min(high, point.max)
            return least + (greatest - least) * max(0.0, rank - seen) / in_bucket
        seen += in_bucket
    return point.max


def _ranges(point: HistogramDataPoint | ExponentialHistogramDataPoint) -> Iterator[tuple[float, float, int]]:
    """Yield the buckets of a histogram, rising, each with its bounds and how many measurements are in it."""
    if isinstance(point, HistogramDataPoint):
        bounds = (-inf, *point.explicit_bounds, inf)
        yield from zip(bounds, bounds[1:], point.bucket_counts, strict=False)
        return
    scale = point.scale
    for index, in_bucket in reversed(list(enumerate(point.negative.bucket_counts, point.negative.offset))):
        yield -upper_bound(index, scale), -upper_bound(index - 1, scale), in_bucket
    yield 0.0, 0.0, point.zero_count
    for index, in_bucket in enumerate(point.positive.bucket_counts, point.positive.offset):
        yield upper_bound(index - 1, scale), upper_bound(index, scale), in_bucket
