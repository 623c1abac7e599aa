"""Reading back what the demo emitted, from the console's JSON API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Self

import httpx

from clew.demo.expectations import SeenSpan
from clew.demo.settings import DemoError

_TIMEOUT_S: Final = 10.0
_SHARES: Final = (0.5, 0.95, 0.99)


@dataclass(frozen=True, kw_only=True)
class Span:
    """A span in its place in its trace's tree.

    Attributes:
        depth: 0 for a root.
        offset_s: from the start of the trace to its own.
        status: ``unset``, ``ok`` or ``error``.
    """

    seen: SeenSpan
    kind: str
    depth: int
    offset_s: float
    duration_s: float
    status: str


@dataclass(frozen=True, kw_only=True)
class LogLine:
    """A log record; ``offset_s`` is from the start of its trace."""

    offset_s: float
    service: str
    severity: str
    body: str
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Series:
    """A series of a metric at its latest point.

    Attributes:
        value: of a counter or gauge; ``None`` for a histogram.
        count: measurements of a histogram.
        percentiles: p50, p95 and p99 of a histogram.
    """

    service: str
    name: str
    unit: str
    labels: Mapping[str, Any] = field(default_factory=dict)
    value: float | None = None
    count: int = 0
    percentiles: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How much the console holds."""

    traces: int
    spans: int
    logs: int
    metric_points: int
    errors: int


class Console:
    """A client of the console.

    Args:
        url: where it is.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(base_url=url, timeout=_TIMEOUT_S, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def stored(self) -> Stored:
        """Return how much it holds."""
        found = self._get("/api/summary")
        return Stored(**{name: found[name] for name in Stored.__dataclass_fields__})

    def trace(self, trace_id: str) -> tuple[Span, ...]:
        """Return the spans of a trace, depth first; none when it has not come in, or has no id because tracing is off."""
        if not trace_id:
            return ()
        found = self._get(f"/api/traces/{trace_id}", none_for=404)
        if found is None:
            return ()
        start_ns = int(found["start_time_unix_nano"])
        return tuple(_span(item, trace_id, start_ns) for item in found["spans"])

    def trace_ids(self, *, service: str, operation: str, since: datetime) -> tuple[str, ...]:
        """Return the traces with such a span, the newest first."""
        asked = {"service": service, "operation": operation, "since": since.isoformat(), "limit": "20"}
        return tuple(item["trace_id"] for item in self._get("/api/traces", asked)["traces"])

    def logs(self, trace_id: str) -> tuple[LogLine, ...]:
        """Return the log records of a trace, oldest first; none when it has no id."""
        if not trace_id:
            return ()
        trace = self._get(f"/api/traces/{trace_id}", {"max_spans": "1"}, none_for=404)
        found = self._get("/api/logs", {"trace_id": trace_id, "oldest_first": "true", "limit": "1000"})["logs"]
        start_ns = int(
            (trace or {"start_time_unix_nano": found[0]["time_unix_nano"] if found else 0})["start_time_unix_nano"]
        )
        return tuple(
            LogLine(
                offset_s=(int(item["time_unix_nano"]) - start_ns) / 1e9,
                service=item["service"],
                severity=item["severity_text"],
                body=str(item["body"]),
                attributes=item["attributes"],
            )
            for item in found
        )

    def series(self, since: datetime) -> tuple[Series, ...]:
        """Return all series that had a point since a time."""
        found: list[Series] = []
        for metric in self._get("/api/metrics")["metrics"]:
            asked = {"since": since.isoformat(), "max_points": "1", "max_series": "1000"}
            answer = self._get(f"/api/metrics/{metric['name']}", asked, none_for=404)
            found += [_series(item) for item in (answer or {"series": []})["series"] if item["points"]]
        return tuple(
            sorted(set_of(found), key=lambda item: (item.name, item.service, sorted(map(str, item.labels.items()))))
        )

    def _get(self, path: str, asked: Mapping[str, str] | None = None, *, none_for: int | None = None) -> Any:
        try:
            answer = self._client.get(path, params=dict(asked or {}))
            if answer.status_code == none_for:
                return None
            return answer.raise_for_status().json()
        except httpx.HTTPError as error:
            raise DemoError(f"the console at {self.url} does not answer ({type(error).__name__}: {error})") from error


def set_of(series: list[Series]) -> list[Series]:
    """Leave out what was listed twice because two metrics of one name differ in their unit."""
    seen: dict[tuple[str, str, str, str], Series] = {}
    for item in series:
        seen[item.service, item.name, item.unit, str(sorted(map(str, item.labels.items())))] = item
    return list(seen.values())


def percentile(share: float, *, bounds: list[float], counts: list[int], least: float, greatest: float) -> float:
    """Return the value below which a share of a histogram's measurements lie, estimated within its bucket.

    Args:
        share: from 0 to 1.
        bounds: upper bounds of all buckets but the last.
        counts: measurements in each bucket.
        least: the smallest measurement.
        greatest: the largest one.

    Example:
        >>> percentile(0.5, bounds=[1.0, 2.0], counts=[0, 4, 0], least=1.0, greatest=2.0)
        1.5
    """
    rank = share * sum(counts)
    before = 0
    edges = [*bounds, greatest]
    for index, count in enumerate(counts):
        if count and before + count >= rank:
            low = max(edges[index - 1] if index else least, least)
            high = min(edges[index], greatest)
            return low + (high - low) * max(0.0, rank - before) / count
        before += count
    return greatest


def _span(item: Mapping[str, Any], trace_id: str, start_ns: int) -> Span:
    return Span(
        seen=SeenSpan(
            service=item["service"],
            name=item["name"],
            trace_id=trace_id,
            span_id=item["span_id"],
            parent_id=item["parent_span_id"] or "",
            links=tuple((link["trace_id"], link["span_id"]) for link in item["links"]),
        ),
        kind=str(item["kind"]),
        depth=item["depth"],
        offset_s=(int(item["start_time_unix_nano"]) - start_ns) / 1e9,
        duration_s=item["duration_s"],
        status=str(item["status"]["code"]),
    )


def _series(item: Mapping[str, Any]) -> Series:
    value = item["latest"]["value"]
    common = {"service": item["service"], "name": item["name"], "unit": item["unit"], "labels": item["attributes"]}
    if not isinstance(value, Mapping):
        return Series(**common, value=value)
    counts, bounds = list(value.get("bucket_counts") or ()), list(value.get("bounds") or ())
    percentiles: tuple[float, ...] = ()
    if value["count"] and len(counts) == len(bounds) + 1 and value.get("min") is not None:
        percentiles = tuple(
            percentile(share, bounds=bounds, counts=counts, least=value["min"], greatest=value["max"])
            for share in _SHARES
        )
    return Series(**common, count=value["count"], percentiles=percentiles)
