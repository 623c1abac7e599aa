"""Metric points as OTLP's ``Metric`` messages.

Source: https://github.com/open-telemetry/opentelemetry-proto/blob/main/opentelemetry/proto/metrics/v1/metrics.proto
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    Sum,
)

from clew.pipeline.coercion import integer
from clew.pipeline.encoding.values import Pairs, Texts, Values
from clew.pipeline.encoding.wire import counted, delimited, double, fixed64, packed, sfixed64, sint32, varint

Point = NumberDataPoint | HistogramDataPoint | ExponentialHistogramDataPoint


class MetricMessages:
    """Encodes metrics.

    Args:
        values: encodes what their attributes hold.
    """

    def __init__(self, values: Values) -> None:
        self._names = Texts(values, b"\x0a")
        self._descriptions = Texts(values, b"\x12")
        self._units = Texts(values, b"\x1a")
        self._number_attributes = Pairs(values, b"\x3a")
        self._histogram_attributes = Pairs(values, b"\x4a")
        self._exponential_attributes = Pairs(values, b"\x0a")
        self._exemplar_attributes = Pairs(values, b"\x3a")

    def encode(self, metric: Metric) -> bytes:
        """Return a metric and its points."""
        data = metric.data
        points: Iterable[bytes] = ()
        about = b""
        if isinstance(data, Gauge):
            tag, points = b"\x2a", map(self._gauge, data.data_points)
        else:
            about = b"\x10" + varint(data.aggregation_temporality)
            if isinstance(data, Sum):
                tag, points = b"\x3a", map(self._sum, data.data_points)
                about += b"\x18\x01" if data.is_monotonic else b""
            elif isinstance(data, Histogram):
                tag, points = b"\x4a", map(self._histogram, data.data_points)
            elif isinstance(data, ExponentialHistogram):
                tag, points = b"\x52", map(self._exponential, data.data_points)
        encoded = b"".join([delimited(b"\x0a", point) for point in points])
        return b"".join(
            (
                self._names[metric.name or ""],
                self._descriptions[metric.description or ""],
                self._units[metric.unit or ""],
                # One without points has no kind, as with the stock encoder
                delimited(tag, encoded + about) if encoded else b"",
            )
        )

    def _gauge(self, point: NumberDataPoint) -> bytes:
        # A gauge has no beginning
        return b"\x19" + fixed64(point.time_unix_nano or 0) + self._number_fields(point)

    def _sum(self, point: NumberDataPoint) -> bytes:
        return _span_of_time(point) + self._number_fields(point)

    def _number_fields(self, point: NumberDataPoint) -> bytes:
        return b"".join(
            (
                _number(point.value, b"\x21"),
                *self._number_attributes.encode(point.attributes),
                *self._exemplars(b"\x2a", point.exemplars),
            )
        )

    def _histogram(self, point: HistogramDataPoint) -> bytes:
        return b"".join(
            (
                _span_of_time(point),
                b"\x21",
                fixed64(point.count),
                b"\x29",
                double(point.sum),
                packed(b"\x32", "Q", point.bucket_counts),
                packed(b"\x3a", "d", point.explicit_bounds),
                *self._exemplars(b"\x42", point.exemplars),
                *self._histogram_attributes.encode(point.attributes),
                _extremes(point, b"\x59", b"\x61"),
            )
        )

    def _exponential(self, point: ExponentialHistogramDataPoint) -> bytes:
        return b"".join(
            (
                *self._exponential_attributes.encode(point.attributes),
                _span_of_time(point),
                b"\x21",
                fixed64(point.count),
                b"\x29",
                double(point.sum),
                b"\x30",
                sint32(point.scale),
                b"\x39",
                fixed64(point.zero_count),
                _buckets(b"\x42", point.positive),
                _buckets(b"\x4a", point.negative),
                counted(b"\x50", point.flags),
                *self._exemplars(b"\x5a", point.exemplars),
                _extremes(point, b"\x61", b"\x69"),
            )
        )

    def _exemplars(self, tag: bytes, exemplars: Iterable[Exemplar]) -> list[bytes]:
        return [
            delimited(
                tag,
                b"".join(
                    (
                        b"\x11",
                        fixed64(exemplar.time_unix_nano or 0),
                        _number(exemplar.value, b"\x19"),
                        *_exemplar_ids(exemplar),
                        *self._exemplar_attributes.encode(exemplar.filtered_attributes),
                    )
                ),
            )
            for exemplar in exemplars
        ]


def _number(value: float, double_tag: bytes) -> bytes:
    # In a point and in an exemplar alike, field 6 is the integer; one that is too large for it is nearly a float
    if isinstance(value, int) and isinstance(integer(value), int):
        return b"\x31" + sfixed64(value)
    return double_tag + double(value)


def _span_of_time(point: Point) -> bytes:
    return b"".join((b"\x11", fixed64(point.start_time_unix_nano or 0), b"\x19", fixed64(point.time_unix_nano or 0)))


def _extremes(point: HistogramDataPoint | ExponentialHistogramDataPoint, min_tag: bytes, max_tag: bytes) -> bytes:
    if point.min == math.inf and point.max == -math.inf:
        # Nothing was recorded, or extremes are not
        return b""
    return b"".join((min_tag, double(point.min), max_tag, double(point.max)))


def _buckets(tag: bytes, buckets: Any) -> bytes:
    if not buckets.bucket_counts:
        return b""
    counts = b"".join([varint(count) for count in buckets.bucket_counts])
    return delimited(tag, b"\x08" + sint32(buckets.offset) + delimited(b"\x12", counts))


def _exemplar_ids(exemplar: Exemplar) -> tuple[bytes, ...]:
    if exemplar.span_id is None or exemplar.trace_id is None:
        return ()
    return (b"\x22\x08", exemplar.span_id.to_bytes(8, "big"), b"\x2a\x10", exemplar.trace_id.to_bytes(16, "big"))
