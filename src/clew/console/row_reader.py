"""From database rows back to the records they were written from."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from clew.console.model import LogRecord, Resource, Scope, Span, SpanLink
from clew.console.row_json import events_from_text
from clew.console.values import attributes_from_json, from_json_value

SPAN_COLUMNS = (
    "trace_id, span_id, parent_span_id, trace_state, flags, name, kind, start_ns, end_ns, status_code, status_message,"
    " attributes, events, dropped_attributes, dropped_events, dropped_links, scope_id"
)
LINK_COLUMNS = "linked_trace_id, linked_span_id, trace_state, flags, attributes, dropped_attributes"
LOG_COLUMNS = (
    "time_ns, observed_ns, severity_number, severity_text, body_text, body_json, attributes, dropped_attributes, flags,"
    " trace_id, span_id, event_name, scope_id"
)


class SourceReader:
    """Reads resources and scopes, each once.

    Args:
        connection: a reading connection, held for as long as this object is used.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._sources: dict[int, tuple[Resource, Scope]] = {}

    def source(self, scope_id: int) -> tuple[Resource, Scope]:
        """Return the resource and the scope of a scope row."""
        known = self._sources.get(scope_id)
        if known is None:
            row = self._connection.execute(
                "SELECT resources.attributes, resources.schema_url, scopes.name, scopes.version, scopes.attributes,"
                " scopes.schema_url FROM scopes JOIN resources ON resources.id = resource_id WHERE scopes.id = ?",
                (scope_id,),
            ).fetchone()
            resource = Resource(attributes=attributes_from_json(json.loads(row[0])), schema_url=row[1])
            scope = Scope(
                name=row[2], version=row[3], attributes=attributes_from_json(json.loads(row[4])), schema_url=row[5]
            )
            known = self._sources[scope_id] = (resource, scope)
        return known


def span_from_row(row: Sequence[Any], links: tuple[SpanLink, ...], sources: SourceReader) -> Span:
    """Return the span of a row of SPAN_COLUMNS."""
    resource, scope = sources.source(row[16])
    return Span(
        trace_id=row[0].hex(),
        span_id=row[1].hex(),
        parent_span_id=_hex(row[2]),
        trace_state=row[3],
        flags=row[4],
        name=row[5],
        kind=row[6],
        start_time_unix_nano=row[7],
        end_time_unix_nano=row[8],
        status_code=row[9],
        status_message=row[10],
        attributes=attributes_from_json(json.loads(row[11])),
        events=events_from_text(row[12]),
        links=links,
        dropped_attributes_count=row[13],
        dropped_events_count=row[14],
        dropped_links_count=row[15],
        resource=resource,
        scope=scope,
    )


def link_from_row(row: Sequence[Any]) -> SpanLink:
    """Return the span link of a row of LINK_COLUMNS."""
    return SpanLink(
        trace_id=row[0].hex(),
        span_id=row[1].hex(),
        trace_state=row[2],
        flags=row[3],
        attributes=attributes_from_json(json.loads(row[4])),
        dropped_attributes_count=row[5],
    )


def log_from_row(row: Sequence[Any], sources: SourceReader) -> LogRecord:
    """Return the log record of a row of LOG_COLUMNS."""
    resource, scope = sources.source(row[12])
    return LogRecord(
        time_unix_nano=row[0],
        observed_time_unix_nano=row[1],
        severity_number=row[2],
        severity_text=row[3],
        body=row[4] if row[5] is None else from_json_value(json.loads(row[5])),
        attributes=attributes_from_json(json.loads(row[6])),
        dropped_attributes_count=row[7],
        flags=row[8],
        trace_id=_hex(row[9]),
        span_id=_hex(row[10]),
        event_name=row[11],
        resource=resource,
        scope=scope,
    )


def _hex(value: bytes | None) -> str | None:
    return None if value is None else value.hex()
