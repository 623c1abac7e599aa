"""Questions about traces: which there are, one as a tree, and which others it is linked with."""

# ruff: noqa: S608 - what is put into statements are names from this package; values are always bound

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from clew.console.model import Span, SpanLink, utc_from_unix_nano
from clew.console.query_arguments import checked_duration, checked_limit, checked_time, checked_trace_id
from clew.console.row_reader import LINK_COLUMNS, SPAN_COLUMNS, SourceReader, link_from_row, span_from_row
from clew.console.store import Store
from clew.console.text_search import text_condition
from clew.console.values import Attributes, attributes_from_json

SCOPES_OF_SERVICE = (
    "SELECT scopes.id FROM scopes JOIN resources ON resources.id = scopes.resource_id WHERE resources.service = ?"
)

_TRACE_COLUMNS = "trace_id, start_ns, end_ns, span_count, error_count"


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceSummary:
    """A trace as one line.

    `root_name` and `root_service` are those of its root span, or of its earliest span while the root is missing
    (`has_root`); `duration_s` is seconds from its first start to its last end; `services` is sorted.
    """

    trace_id: str
    root_name: str
    root_service: str
    has_root: bool
    start_time_unix_nano: int
    duration_s: float
    span_count: int
    error_count: int
    services: tuple[str, ...]

    @property
    def start_time(self) -> datetime:
        """Start as an aware UTC datetime."""
        return utc_from_unix_nano(self.start_time_unix_nano)


@dataclass(frozen=True, kw_only=True, slots=True)
class TreeSpan:
    """A span in its place in the tree: `depth` is 0 for a root, `is_orphan` when its parent is not in the store."""

    span: Span
    depth: int
    is_orphan: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """A whole trace. `spans` is depth first, siblings by start; `is_cut` when it has more spans than were asked for."""

    summary: TraceSummary
    spans: tuple[TreeSpan, ...]
    is_cut: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkedTrace:
    """Another trace that a span link leads to (outgoing) or comes from (incoming).

    `span_id` is the link's end in the trace asked about, `linked_span_id` the one in `trace_id`; `summary` is None
    when the other trace is not in the store.
    """

    trace_id: str
    direction: Literal["outgoing", "incoming"]
    span_id: str
    linked_span_id: str
    attributes: Attributes
    summary: TraceSummary | None


def traces(  # noqa: PLR0913 - each is a filter of its own, and named
    store: Store,
    *,
    service: str | None = None,
    operation: str | None = None,
    min_duration_s: float | None = None,
    errors_only: bool = False,
    since: datetime | None = None,
    until: datetime | None = None,
    text: str | None = None,
    limit: int = 100,
) -> tuple[TraceSummary, ...]:
    """Return the traces that match all conditions, newest first.

    Args:
        store: where to look.
        service: one span is this service's ...
        operation: ... and has this name ...
        text: ... and has this text in its name, status message, attributes or events, in any case.
        min_duration_s: the whole trace took at least these seconds.
        errors_only: at least one span has status error.
        since: it started at this aware time or later.
        until: it started before this aware time.
        limit: at most so many, 1 to 10 000.

    Raises:
        QueryError: an argument is not usable.
        StoreUnavailableError: the store cannot answer.

    Example:
        >>> import tempfile
        >>> with Store(tempfile.mkdtemp()) as store:
        ...     traces(store, service="orders", errors_only=True)
        ()
    """
    conditions: list[str] = ["TRUE"]
    arguments: list[object] = []
    if since is not None:
        conditions.append("start_ns >= ?")
        arguments.append(checked_time("since", since))
    if until is not None:
        conditions.append("start_ns < ?")
        arguments.append(checked_time("until", until))
    if min_duration_s is not None:
        conditions.append("end_ns - start_ns >= ?")
        arguments.append(checked_duration("min_duration_s", min_duration_s))
    if errors_only:
        conditions.append("error_count > 0")
    span_condition, span_arguments = _span_condition(service, operation, text)
    conditions.append(span_condition)
    arguments += [*span_arguments, checked_limit(limit)]
    statement = (
        f"SELECT {_TRACE_COLUMNS} FROM traces WHERE {' AND '.join(conditions)} ORDER BY start_ns DESC, trace_id LIMIT ?"
    )
    with store.reading() as connection:
        return tuple(_summary(connection, row) for row in connection.execute(statement, arguments).fetchall())


def trace(store: Store, trace_id: str, *, max_spans: int = 10_000) -> Trace | None:
    """Return one trace with the spans of all services, their events and links; None when it is not in the store.

    Args:
        store: where to look.
        trace_id: 32 hexadecimal digits.
        max_spans: at most so many spans, the earliest, 1 to 10 000.

    Raises:
        QueryError: an argument is not usable.
        StoreUnavailableError: the store cannot answer.

    Example:
        >>> import tempfile
        >>> with Store(tempfile.mkdtemp()) as store:
        ...     trace(store, "4bf92f3577b34da6a3ce929d0e0e4736") is None
        True
    """
    key = checked_trace_id(trace_id)
    limit = checked_limit(max_spans, "max_spans")
    with store.reading() as connection:
        row = connection.execute(f"SELECT {_TRACE_COLUMNS} FROM traces WHERE trace_id = ?", (key,)).fetchone()
        if row is None:
            return None
        summary = _summary(connection, row)
        links = _links(connection, key)
        sources = SourceReader(connection)
        rows = connection.execute(
            f"SELECT {SPAN_COLUMNS} FROM spans WHERE trace_id = ? ORDER BY start_ns, id LIMIT ?", (key, limit)
        )
        spans = [span_from_row(item, tuple(links.get(item[1], ())), sources) for item in rows]
    return Trace(summary=summary, spans=_tree(spans), is_cut=summary.span_count > len(spans))


def linked_traces(store: Store, trace_id: str, *, limit: int = 100) -> tuple[LinkedTrace, ...]:
    """Return the other traces that span links lead to from this one, then those that link to it.

    Args:
        store: where to look.
        trace_id: 32 hexadecimal digits.
        limit: at most so many links in each direction, 1 to 10 000.

    Raises:
        QueryError: an argument is not usable.
        StoreUnavailableError: the store cannot answer.

    Example:
        >>> import tempfile
        >>> with Store(tempfile.mkdtemp()) as store:
        ...     linked_traces(store, "4bf92f3577b34da6a3ce929d0e0e4736")
        ()
    """
    key = checked_trace_id(trace_id)
    arguments = (key, key, checked_limit(limit))
    with store.reading() as connection:
        outgoing = connection.execute(
            "SELECT linked_trace_id, 'outgoing', span_id, linked_span_id, attributes FROM span_links"
            " WHERE trace_id = ? AND linked_trace_id <> ? ORDER BY span_id, position LIMIT ?",
            arguments,
        ).fetchall()
        incoming = connection.execute(
            "SELECT trace_id, 'incoming', linked_span_id, span_id, attributes FROM span_links"
            " WHERE linked_trace_id = ? AND trace_id <> ? ORDER BY trace_id, span_id, position LIMIT ?",
            arguments,
        ).fetchall()
        summaries = {other: _summary_of(connection, other) for other in {row[0] for row in outgoing + incoming}}
    return tuple(
        LinkedTrace(
            trace_id=other.hex(),
            direction=direction,
            span_id=span_id.hex(),
            linked_span_id=linked_span_id.hex(),
            attributes=attributes_from_json(json.loads(attributes)),
            summary=summaries[other],
        )
        for other, direction, span_id, linked_span_id, attributes in outgoing + incoming
    )


def _span_condition(service: str | None, operation: str | None, text: str | None) -> tuple[str, list[object]]:
    conditions: list[str] = []
    arguments: list[object] = []
    if service is not None:
        conditions.append(f"scope_id IN ({SCOPES_OF_SERVICE})")
        arguments.append(service)
    if operation is not None:
        conditions.append("name = ?")
        arguments.append(operation)
    if text is not None:
        condition, needles = text_condition(text, ("name", "status_message"), ("attributes", "events"))
        conditions.append(condition)
        arguments += needles
    if not conditions:
        return "TRUE", []
    found = " AND ".join(conditions)
    return f"EXISTS (SELECT 1 FROM spans WHERE spans.trace_id = traces.trace_id AND {found})", arguments


def _summary_of(connection: sqlite3.Connection, key: bytes) -> TraceSummary | None:
    row = connection.execute(f"SELECT {_TRACE_COLUMNS} FROM traces WHERE trace_id = ?", (key,)).fetchone()
    return None if row is None else _summary(connection, row)


def _summary(connection: sqlite3.Connection, row: tuple[bytes, int, int, int, int]) -> TraceSummary:
    key, start_ns, end_ns, span_count, error_count = row
    source = "scopes ON scopes.id = scope_id JOIN resources ON resources.id = resource_id"
    root_name, root_service, parent = connection.execute(
        f"SELECT spans.name, service, parent_span_id FROM spans JOIN {source} WHERE trace_id = ?"
        " ORDER BY parent_span_id IS NOT NULL, start_ns, spans.id LIMIT 1",
        (key,),
    ).fetchone()
    services = connection.execute(
        f"SELECT DISTINCT service FROM spans JOIN {source} WHERE trace_id = ? ORDER BY service", (key,)
    )
    return TraceSummary(
        trace_id=key.hex(),
        root_name=root_name,
        root_service=root_service,
        has_root=parent is None,
        start_time_unix_nano=start_ns,
        duration_s=max(0, end_ns - start_ns) / 1e9,
        span_count=span_count,
        error_count=error_count,
        services=tuple(name for (name,) in services),
    )


def _links(connection: sqlite3.Connection, key: bytes) -> dict[bytes, list[SpanLink]]:
    links: dict[bytes, list[SpanLink]] = defaultdict(list)
    for span_id, *row in connection.execute(
        f"SELECT span_id, {LINK_COLUMNS} FROM span_links WHERE trace_id = ? ORDER BY span_id, position", (key,)
    ):
        links[span_id].append(link_from_row(row))
    return links


def _tree(spans: list[Span]) -> tuple[TreeSpan, ...]:
    """Order spans depth first without recursion; spans in a circle of parents are shown as orphans, not lost."""
    known = {span.span_id for span in spans}
    children: dict[str, list[Span]] = defaultdict(list)
    tops: list[Span] = []
    for span in spans:
        if span.parent_span_id is None or span.parent_span_id not in known:
            tops.append(span)
        else:
            children[span.parent_span_id].append(span)
    ordered: list[TreeSpan] = []
    placed: set[str] = set()
    for top in [*tops, *spans]:  # after the tops, only what a circle of parents keeps from them is not placed
        waiting = [(top, 0)]
        while waiting:
            span, depth = waiting.pop()
            if span.span_id in placed:
                continue
            placed.add(span.span_id)
            is_orphan = depth == 0 and span.parent_span_id is not None
            ordered.append(TreeSpan(span=span, depth=depth, is_orphan=is_orphan))
            waiting.extend((child, depth + 1) for child in reversed(children[span.span_id]))
    return tuple(ordered)
