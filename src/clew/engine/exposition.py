"""The metrics of this process in Prometheus's text formats, with the same numbers as OTLP.

Source: https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.sdk.metrics.export import ExponentialHistogram, Histogram, ScopeMetrics, Sum
from prometheus_client import exposition
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.samples import Exemplar as PrometheusExemplar

from clew.engine.runtime import ready

_UNITS: Final = {"s": "seconds", "ms": "milliseconds", "By": "bytes", "%": "percent", "1": "ratio"}
_INVALID: Final = re.compile(r"[^a-zA-Z0-9_:]+")
_OPENMETRICS: Final = "application/openmetrics-text"


class _Collected:
    """What prometheus_client's writers take for a registry."""

    def __init__(self, families: list[Family]) -> None:
        self._families = families

    def collect(self) -> list[Family]:
        return self._families


def prometheus_text(accept: str = "") -> tuple[bytes, str]:
    """Return the metrics of now and their content type.

    Args:
        accept: the ``Accept`` header of the scrape; OpenMetrics, which has exemplars, is written where it is asked for.

    Example:
        >>> import clew
        >>> body, content_type = clew.prometheus_text()
        >>> content_type
        'text/plain; version=1.0.0; charset=utf-8'
    """
    pipeline = ready().pipeline
    families = list(_families(pipeline.collect(), dict(pipeline.resource.attributes))) if pipeline is not None else []
    registry: Any = _Collected(families)
    writer: Any = openmetrics_exposition if _OPENMETRICS in accept else exposition
    return writer.generate_latest(registry), writer.CONTENT_TYPE_LATEST


def prometheus_name(name: str, unit: str, *, monotonic: bool = False) -> str:
    """Return a metric's name as Prometheus has it.

    Example:
        >>> prometheus_name("http.server.request.duration", "s")
        'http_server_request_duration_seconds'
        >>> prometheus_name("orders.placed", "{order}", monotonic=True)
        'orders_placed_total'
    """
    text = _INVALID.sub("_", name).strip("_")
    if text[:1].isdigit():
        text = f"_{text}"
    suffix = _UNITS.get(unit, "" if unit.startswith("{") or not unit else _INVALID.sub("_", unit).strip("_"))
    if suffix == "ratio" and monotonic:
        suffix = ""
    if suffix and not text.endswith(f"_{suffix}"):
        text = f"{text}_{suffix}"
    return f"{text}_total" if monotonic and not text.endswith("_total") else text


def _families(scopes: Iterable[ScopeMetrics], resource: dict[str, Any]) -> Iterator[Family]:
    info = GaugeMetricFamily("target_info", "The service.", labels=[_label(key) for key in resource])
    info.add_metric([str(value) for value in resource.values()], 1)
    yield info
    seen: dict[str, Family] = {}
    for scope in scopes:
        for metric in scope.metrics:
            family = _family(metric)
            # Two scopes may have an instrument of one name, and a family must be written in one piece
            if (known := seen.get(family.name)) is not None and known.type == family.type:
                known.samples.extend(family.samples)
            elif known is None:
                seen[family.name] = family
    yield from seen.values()


def _family(metric: Any) -> Family:
    data: Any = metric.data
    unit = metric.unit or ""
    names = sorted({key for point in data.data_points for key in point.attributes or {}})
    labels = [_label(name) for name in names]
    family: Any
    point: Any
    if isinstance(data, Histogram):
        family = HistogramMetricFamily(prometheus_name(metric.name, unit), metric.description or "", labels=labels)
        for point in data.data_points:
            family.add_metric(_values(point, names), _buckets(point), point.sum)
        return family  # type: ignore[no-any-return]
    if isinstance(data, ExponentialHistogram):
        # The text formats have no exponential buckets. Classic ones made of them would be others at each change of scale, which
        # Prometheus takes for a reset; the count and the sum are right
        family = HistogramMetricFamily(prometheus_name(metric.name, unit), metric.description or "", labels=labels)
        for point in data.data_points:
            buckets = [("+Inf", point.count, _exemplar(point.exemplars[-1] if point.exemplars else None))]
            family.add_metric(_values(point, names), buckets, point.sum)
        return family  # type: ignore[no-any-return]
    if isinstance(data, Sum) and data.is_monotonic:
        family = CounterMetricFamily(
            prometheus_name(metric.name, unit, monotonic=True), metric.description or "", labels=labels
        )
        for point in data.data_points:
            exemplar = _exemplar(point.exemplars[-1] if point.exemplars else None)
            family.add_metric(_values(point, names), point.value, exemplar=exemplar)
        return family  # type: ignore[no-any-return]
    family = GaugeMetricFamily(prometheus_name(metric.name, unit), metric.description or "", labels=labels)
    for point in data.data_points:
        family.add_metric(_values(point, names), point.value)
    return family  # type: ignore[no-any-return]


def _label(name: str) -> str:
    text = re.sub(r"[^a-zA-Z0-9_]", "_", name)
    return f"_{text}" if text[:1].isdigit() else text


def _values(point: Any, names: list[str]) -> list[str]:
    attributes = point.attributes or {}
    return [_text(attributes.get(name, "")) for name in names]


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _buckets(point: Any) -> list[Any]:
    by_bucket = {_index(point.explicit_bounds, exemplar.value): exemplar for exemplar in point.exemplars}
    total, buckets = 0, []
    for index, in_bucket in enumerate(point.bucket_counts):
        total += in_bucket
        bound = str(float(point.explicit_bounds[index])) if index < len(point.explicit_bounds) else "+Inf"
        buckets.append((bound, total, _exemplar(by_bucket.get(index))))
    return buckets


def _index(bounds: Any, value: float) -> int:
    return next((index for index, bound in enumerate(bounds) if value <= bound), len(bounds))


def _exemplar(exemplar: Any) -> PrometheusExemplar | None:
    if exemplar is None or not exemplar.trace_id:
        return None
    labels = {
        "trace_id": trace.format_trace_id(exemplar.trace_id),
        "span_id": trace.format_span_id(exemplar.span_id),
    }
    return PrometheusExemplar(labels, exemplar.value, exemplar.time_unix_nano / 1e9)
