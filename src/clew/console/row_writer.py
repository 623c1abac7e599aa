"""Writing batches into the tables, inside a transaction that the store opens and closes."""

# ruff: noqa: S608 - what is put into statements are names from this package; values are always bound

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable

from clew.console.model import Batch, LogRecord, MeasuredPoint, Metric, Resource, Scope, Span
from clew.console.row_json import events_to_text, exemplars_to_text, point_value_to_text
from clew.console.values import attributes_to_json, dump_json, to_json_value

_MOST_KNOWN_IDS = 50_000

_INSERT_SPAN = f"INSERT INTO spans VALUES (NULL, {', '.join('?' * 18)}) ON CONFLICT (trace_id, span_id) DO NOTHING"
_INSERT_LINK = f"INSERT INTO span_links VALUES ({', '.join('?' * 9)}) ON CONFLICT DO NOTHING"
_INSERT_LOG = f"INSERT INTO logs VALUES (NULL, {', '.join('?' * 15)})"
_INSERT_POINT = f"INSERT INTO points VALUES (NULL, {', '.join('?' * 7)}) ON CONFLICT (series_id, time_ns) DO NOTHING"


class RowWriter:
    """Inserts batches, remembering the row ids of resources, scopes, metrics and series it has seen.

    Args:
        connection: the writing connection; the caller holds a transaction around `write`.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._ids: dict[object, int] = {}

    def forget(self) -> None:
        """Forget remembered ids: their rows may be gone, after a rollback or a retention pass."""
        self._ids.clear()

    def write(self, batch: Batch, received_ns: int) -> None:
        """Insert one batch's records.

        Args:
            batch: the records.
            received_ns: Unix nanoseconds they came in at; retention goes by this, not by the senders' clocks.

        Raises:
            sqlite3.Error: the database cannot take them.
        """
        if len(self._ids) > _MOST_KNOWN_IDS:
            self.forget()
        sources = _Sources(self)
        if batch.spans:
            rows = [_span_row(span, sources.scope_id(span.resource, span.scope), received_ns) for span in batch.spans]
            self._connection.executemany(_INSERT_SPAN, rows)
            links = [row for span in batch.spans for row in _link_rows(span)]
            self._connection.executemany(_INSERT_LINK, links)
        if batch.logs:
            logs = [_log_row(log, sources.scope_id(log.resource, log.scope), received_ns) for log in batch.logs]
            self._connection.executemany(_INSERT_LOG, logs)
        if batch.points:
            points = [_point_row(item, sources.series_id(item), received_ns) for item in batch.points]
            self._connection.executemany(_INSERT_POINT, points)

    def resource_id(self, resource: Resource) -> int:
        """Return the row id of a resource, adding it when it is new."""
        attributes = dump_json(attributes_to_json(resource.attributes), sort_keys=True)
        row = (resource.service, attributes, resource.schema_url)
        return self._identified("resources", "service, attributes, schema_url", row)

    def scope_id(self, scope: Scope, resource_id: int) -> int:
        """Return the row id of a scope within a resource, adding it when it is new."""
        attributes = dump_json(attributes_to_json(scope.attributes), sort_keys=True)
        row = (resource_id, scope.name, scope.version, attributes, scope.schema_url)
        return self._identified("scopes", "resource_id, name, version, attributes, schema_url", row)

    def series_id(self, item: MeasuredPoint, scope_id: int) -> int:
        """Return the row id of a point's series, adding it when it is new."""
        attributes = dump_json(attributes_to_json(item.attributes), sort_keys=True)
        row = (self._metric_id(item.metric), scope_id, attributes)
        return self._identified("series", "metric_id, scope_id, attributes", row)

    def _metric_id(self, metric: Metric) -> int:
        def add() -> int:
            return self._returned_id(
                "INSERT INTO metrics (name, type, unit, temporality, is_monotonic, description) "
                "VALUES (?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (name, type, unit, temporality, is_monotonic) "
                "DO UPDATE SET description = excluded.description RETURNING id",
                (metric.name, metric.type, metric.unit, metric.temporality, metric.is_monotonic, metric.description),
            )

        return self._remembered(metric, add)

    def _identified(self, table: str, columns: str, row: tuple[object, ...]) -> int:
        identity = hashlib.blake2b(repr(row).encode("utf-8", "surrogatepass"), digest_size=16).digest()

        def add() -> int:
            # The update changes nothing; without it RETURNING gives no row when the row is there already.
            return self._returned_id(
                f"INSERT INTO {table} (identity, {columns}) VALUES (?, {', '.join('?' * len(row))}) "
                "ON CONFLICT (identity) DO UPDATE SET identity = identity RETURNING id",
                (identity, *row),
            )

        return self._remembered((table, identity), add)

    def _remembered(self, key: object, add: Callable[[], int]) -> int:
        known = self._ids.get(key)
        if known is None:
            known = self._ids[key] = add()
        return known

    def _returned_id(self, statement: str, row: tuple[object, ...]) -> int:
        row_id: int = self._connection.execute(statement, row).fetchone()[0]
        return row_id


class _Sources:
    """Row ids by object identity for one batch, whose records share a few resource and scope objects."""

    def __init__(self, writer: RowWriter) -> None:
        self._writer = writer
        self._scope_ids: dict[tuple[int, int], int] = {}

    def scope_id(self, resource: Resource, scope: Scope) -> int:
        key = (id(resource), id(scope))
        known = self._scope_ids.get(key)
        if known is None:
            known = self._scope_ids[key] = self._writer.scope_id(scope, self._writer.resource_id(resource))
        return known

    def series_id(self, item: MeasuredPoint) -> int:
        return self._writer.series_id(item, self.scope_id(item.resource, item.scope))


def _span_row(span: Span, scope_id: int, received_ns: int) -> tuple[object, ...]:
    return (
        bytes.fromhex(span.trace_id),
        bytes.fromhex(span.span_id),
        bytes.fromhex(span.parent_span_id) if span.parent_span_id else None,
        span.trace_state,
        span.flags,
        span.name,
        span.kind,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        span.status_code,
        span.status_message,
        dump_json(attributes_to_json(span.attributes)),
        events_to_text(span.events),
        span.dropped_attributes_count,
        span.dropped_events_count,
        span.dropped_links_count,
        scope_id,
        received_ns,
    )


def _link_rows(span: Span) -> list[tuple[object, ...]]:
    return [
        (
            bytes.fromhex(span.trace_id),
            bytes.fromhex(span.span_id),
            position,
            bytes.fromhex(link.trace_id),
            bytes.fromhex(link.span_id),
            link.trace_state,
            link.flags,
            dump_json(attributes_to_json(link.attributes)),
            link.dropped_attributes_count,
        )
        for position, link in enumerate(span.links)
    ]


def _log_row(log: LogRecord, scope_id: int, received_ns: int) -> tuple[object, ...]:
    is_text = isinstance(log.body, str)
    body_json = None if is_text else dump_json(to_json_value(log.body))
    return (
        log.time_unix_nano or log.observed_time_unix_nano or received_ns,
        log.time_unix_nano,
        log.observed_time_unix_nano,
        log.severity_number,
        log.severity_text,
        log.body if is_text else "" if log.body is None else body_json,
        body_json,
        dump_json(attributes_to_json(log.attributes)),
        log.dropped_attributes_count,
        log.flags,
        bytes.fromhex(log.trace_id) if log.trace_id else None,
        bytes.fromhex(log.span_id) if log.span_id else None,
        log.event_name,
        scope_id,
        received_ns,
    )


def _point_row(item: MeasuredPoint, series_id: int, received_ns: int) -> tuple[object, ...]:
    point = item.point
    return (
        series_id,
        point.time_unix_nano or received_ns,
        point.start_time_unix_nano,
        point_value_to_text(point.value),
        point.flags,
        exemplars_to_text(point.exemplars),
        received_ns,
    )
