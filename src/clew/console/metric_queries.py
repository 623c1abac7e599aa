"""Questions about metrics: which there are, and the series of one."""

# ruff: noqa: S608 - what is put into statements are names from this package; values are always bound

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from clew.console.model import Metric, MetricPoint, Resource, Scope
from clew.console.query_arguments import checked_limit, checked_time
from clew.console.row_json import exemplars_from_text, point_value_from_text
from clew.console.row_reader import SourceReader
from clew.console.store import Store
from clew.console.trace_queries import SCOPES_OF_SERVICE
from clew.console.values import Attributes, attributes_from_json

_MOST_POINTS = 100_000  # in one answer, over all its series
_METRIC_COLUMNS = (
    "metrics.name, metrics.type, metrics.unit, metrics.description, metrics.temporality, metrics.is_monotonic"
)
_POINT_COLUMNS = "time_ns, start_ns, value, flags, exemplars"


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricSummary:
    """A metric as one line: what it is, the sorted `services` that send it, and how many series it has."""

    metric: Metric
    services: tuple[str, ...]
    series_count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricSeries:
    """One series: `latest` is its newest point at all, `points` those in the time asked for, oldest first."""

    metric: Metric
    attributes: Attributes
    resource: Resource
    scope: Scope
    latest: MetricPoint
    points: tuple[MetricPoint, ...]

    @property
    def service(self) -> str:
        """Name of the service that sends the series."""
        return self.resource.service


def metrics(store: Store) -> tuple[MetricSummary, ...]:
    """Return all metrics, by name.

    Args:
        store: where to look.

    Raises:
        StoreUnavailableError: the store cannot answer.

    Example:
        >>> import tempfile
        >>> with Store(tempfile.mkdtemp()) as store:
        ...     metrics(store)
        ()
    """
    with store.reading() as connection:
        services: dict[int, list[str]] = defaultdict(list)
        for metric_id, service in connection.execute(
            "SELECT DISTINCT metric_id, service FROM series JOIN scopes ON scopes.id = scope_id"
            " JOIN resources ON resources.id = resource_id ORDER BY service"
        ):
            services[metric_id].append(service)
        rows = connection.execute(
            f"SELECT metrics.id, count(*), {_METRIC_COLUMNS} FROM metrics JOIN series ON metric_id = metrics.id"
            " GROUP BY metrics.id ORDER BY name, type, unit, temporality"
        )
        return tuple(
            MetricSummary(metric=_metric(row), services=tuple(services[metric_id]), series_count=count)
            for metric_id, count, *row in rows
        )


def metric_series(
    store: Store,
    name: str,
    *,
    service: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    max_series: int = 100,
    max_points: int = 500,
) -> tuple[MetricSeries, ...]:
    """Return the series of a metric, each with its latest point and its points over time; empty when there are none.

    Args:
        store: where to look.
        name: the metric's name.
        service: only this service's series.
        since: points at this aware time or later.
        until: points before this aware time.
        max_series: at most so many series, 1 to 10 000.
        max_points: at most so many points of each, the newest; fewer when there are very many series.

    Raises:
        QueryError: an argument is not usable.
        StoreUnavailableError: the store cannot answer.

    Example:
        >>> import tempfile
        >>> with Store(tempfile.mkdtemp()) as store:
        ...     metric_series(store, "http.server.request.duration")
        ()
    """
    arguments: list[object] = [name]
    of_service = ""
    if service is not None:
        of_service = f" AND scope_id IN ({SCOPES_OF_SERVICE})"
        arguments.append(service)
    arguments.append(checked_limit(max_series, "max_series"))
    window = _Window(since=since, until=until)
    checked_limit(max_points, "max_points")
    with store.reading() as connection:
        rows = connection.execute(
            f"SELECT series.id, scope_id, attributes, {_METRIC_COLUMNS} FROM series"
            f" JOIN metrics ON metrics.id = metric_id WHERE metrics.name = ?{of_service} ORDER BY series.id LIMIT ?",
            arguments,
        ).fetchall()
        sources = SourceReader(connection)
        window.limit = min(max_points, max(1, _MOST_POINTS // max(1, len(rows))))
        found = [_series(connection, row, sources, window) for row in rows]
    return tuple(series for series in found if series is not None)


class _Window:
    """Which points of a series are asked for."""

    def __init__(self, *, since: datetime | None, until: datetime | None) -> None:
        self.condition = "series_id = ?"
        self.arguments: list[int] = []
        self.limit = 1
        for name, moment, comparison in (("since", since, ">="), ("until", until, "<")):
            if moment is not None:
                self.condition += f" AND time_ns {comparison} ?"
                self.arguments.append(checked_time(name, moment))


def _series(
    connection: sqlite3.Connection, row: tuple[Any, ...], sources: SourceReader, window: _Window
) -> MetricSeries | None:
    series_id, scope_id, attributes, *metric_row = row
    metric = _metric(metric_row)
    latest = connection.execute(
        f"SELECT {_POINT_COLUMNS} FROM points WHERE series_id = ? ORDER BY time_ns DESC LIMIT 1", (series_id,)
    ).fetchone()
    if latest is None:  # its points are deleted, and it will be soon
        return None
    points = connection.execute(
        f"SELECT {_POINT_COLUMNS} FROM points WHERE {window.condition} ORDER BY time_ns DESC LIMIT ?",
        (series_id, *window.arguments, window.limit),
    ).fetchall()
    resource, scope = sources.source(scope_id)
    return MetricSeries(
        metric=metric,
        attributes=attributes_from_json(json.loads(attributes)),
        resource=resource,
        scope=scope,
        latest=_point(metric, latest),
        points=tuple(_point(metric, item) for item in reversed(points)),
    )


def _metric(row: list[Any]) -> Metric:
    name, kind, unit, description, temporality, is_monotonic = row
    return Metric(
        name=name,
        type=kind,
        unit=unit,
        description=description,
        temporality=temporality,
        is_monotonic=bool(is_monotonic),
    )


def _point(metric: Metric, row: tuple[Any, ...]) -> MetricPoint:
    time_ns, start_ns, value, flags, exemplars = row
    return MetricPoint(
        time_unix_nano=time_ns,
        start_time_unix_nano=start_ns,
        value=point_value_from_text(metric.type, value),
        flags=flags,
        exemplars=exemplars_from_text(exemplars),
    )
