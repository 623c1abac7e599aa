"""Messages, newest first, page by page, and statistics of queues, read from totals that are kept as messages are recorded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import Connection, Table, func, select

from clew import clock
from clew.history.models import QueueDepth, QueueMessage, QueueMessageTotal
from clew.history.paging import DEFAULT_LIMIT, Conditions, Page, Row, Shelf, equal
from clew.history.tally import Grain, begin_of

Direction = Literal["sent", "received"]
MessageStatus = Literal["sent", "cancelled", "processed", "failed", "rejected", "returned", "dead_lettered"]

MAX_NAMES: Final = 500
"""How many queues, types and sources are told of one by one; those beyond are in the figures of all."""

_TABLE: Final[Table] = QueueMessage.__table__  # type: ignore[assignment]
MESSAGES: Final = Shelf(table=_TABLE, large=frozenset({"payload"}))
"""All messages."""

_HOUR_S: Final = 3_600.0
_DAY_S: Final = 86_400.0
DEPTH_KNOWN_S: Final = _DAY_S
"""For how long what waited in a queue is told after it was looked at; afterwards nobody looks any more."""
DEPTH_CURRENT_S: Final = 600.0
"""For how long it may be taken for what waits now."""


@dataclass(frozen=True, kw_only=True)
class MessageFilter:
    """Which messages are wanted; what is ``None`` does not matter.

    Attributes:
        queue: the queue's name.
        direction: sends, or tries to process.
        status: what became of it.
        type: its type.
        source: the service that sent it.
        user: for whom it was sent.
        since: recorded at this time or later, with a time zone. A message is recorded when its send, or the try, ends.
        until: recorded before this time, with a time zone.
        error: words that the error's type or message has, each of them, in any order and case.
        trace_id: the trace it belongs to.
        correlation_id: the correlation id it carries.
        message_id: the id that the broker, or its envelope, gave it.

    Example:
        >>> MessageFilter(queue="documents", status="failed").queue
        'documents'
    """

    queue: str | None = None
    direction: Direction | None = None
    status: MessageStatus | None = None
    type: str | None = None
    source: str | None = None
    user: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    error: str | None = None
    trace_id: str | None = None
    correlation_id: str | None = None
    message_id: str | None = None


def page(
    connection: Connection,
    wanted: MessageFilter | None = None,
    *,
    after: str | None = None,
    before: str | None = None,
    limit: int = DEFAULT_LIMIT,
) -> Page:
    """Return messages, newest first: see :meth:`clew.history.paging.Shelf.page`.

    Args:
        connection: to the history.
        wanted: which ones; by default all.
        after: ``next`` of the page before: older ones than that page's.
        before: ``previous`` of a page: newer ones than that page's.
        limit: how many.

    Raises:
        ValueError: `after` or `before` is none of ours.

    Example:
        >>> from clew.history.reading import Reader
        >>> with Reader("sqlite:////nowhere/history.db").open() as connection:
        ...     page(connection, MessageFilter(status="failed")).rows
        []
    """
    wanted = wanted or MessageFilter()
    column = _TABLE.c
    conditions = Conditions()
    conditions.within(_TABLE, wanted.since, wanted.until)
    conditions.exactly(
        equal(column.trace_id, wanted.trace_id),
        equal(column.message_id, wanted.message_id),
        equal(column.correlation_id, wanted.correlation_id),
        equal(column.user_id, wanted.user),
        equal(column.queue, wanted.queue),
        equal(column.status, wanted.status),
    )
    for name, value in (("direction", wanted.direction), ("type", wanted.type), ("source", wanted.source)):
        if value is not None:
            conditions.scanned.append(column[name] == value)
    conditions.words(wanted.error, column.error_message, column.error_type)
    return MESSAGES.page(connection, conditions, after=after, before=before, limit=limit)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """How many messages there were within a time.

    Attributes:
        sent: messages that producers handed on.
        received: tries to process a message, whatever became of it.
        processed: tries that ended well.
        failed: tries that failed.
        rejected: messages that nobody could read.
        returned: tries that put their message back.
        dead_lettered: messages that were given up.
        not_sent: sends that failed.
        cancelled: sends that were cancelled meanwhile, which nobody knows whether they were sent.
        sent_per_s: messages sent in a second, on average; ``None`` where the time has no beginning.
        received_per_s: the same of those that were received.
        wait_s: how long they waited to be processed, on average; ``None`` where none has told.
        process_s: how long a try took, on average.
    """

    sent: int = 0
    received: int = 0
    processed: int = 0
    failed: int = 0
    rejected: int = 0
    returned: int = 0
    dead_lettered: int = 0
    not_sent: int = 0
    cancelled: int = 0
    sent_per_s: float | None = None
    received_per_s: float | None = None
    wait_s: float | None = None
    process_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Figures of all times, of the last day and of the last hour.

    Attributes:
        name: of what: a queue, a type or a source; ``""`` where that is not known.
        total: since the first message that is still counted.
        last_day: of the last 24 hours, and of the hour that they began in.
        last_hour: of the last 60 minutes, and of the minute that they began in.
    """

    name: str
    total: Figures
    last_day: Figures
    last_hour: Figures


@dataclass(frozen=True, kw_only=True)
class QueueReport:
    """What is known of queues.

    Attributes:
        overall: of all of them.
        queues: of each, by name.
        types: of each type of message.
        sources: of each service that sent messages.
        is_cut: there are more queues, types or sources than are told of one by one.
    """

    overall: Windows
    queues: Sequence[Windows]
    types: Sequence[Windows]
    sources: Sequence[Windows]
    is_cut: bool = False


@dataclass(slots=True)
class _Sum:
    by_status: defaultdict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    waits: int = 0
    wait_s: float = 0.0
    process_s: float = 0.0

    def add(self, key: tuple[str, str], messages: int, waits: int, wait_s: float, process_s: float) -> None:
        self.by_status[key] += messages
        if key[0] == "received":
            self.waits += waits
            self.wait_s += wait_s
            self.process_s += process_s

    def figures(self, length_s: float | None) -> Figures:
        of = self.by_status
        received = sum(number for (direction, _), number in of.items() if direction == "received")
        sent = of["sent", "sent"]
        return Figures(
            sent=sent,
            received=received,
            processed=of["received", "processed"],
            failed=of["received", "failed"],
            rejected=of["received", "rejected"],
            returned=of["received", "returned"],
            dead_lettered=of["received", "dead_lettered"],
            not_sent=of["sent", "failed"],
            cancelled=of["sent", "cancelled"],
            sent_per_s=None if length_s is None else sent / length_s,
            received_per_s=None if length_s is None else received / length_s,
            wait_s=max(0.0, self.wait_s) / self.waits if self.waits > 0 else None,
            process_s=max(0.0, self.process_s) / received if received > 0 else None,
        )


@dataclass(slots=True)
class _Windowed:
    total: _Sum = field(default_factory=_Sum)
    last_day: _Sum = field(default_factory=_Sum)
    last_hour: _Sum = field(default_factory=_Sum)

    def windows(self, name: str) -> Windows:
        return Windows(
            name=name,
            total=self.total.figures(None),
            last_day=self.last_day.figures(_DAY_S),
            last_hour=self.last_hour.figures(_HOUR_S),
        )


def report(
    connection: Connection, *, queue: str | None = None, limit: int = MAX_NAMES, now: datetime | None = None
) -> QueueReport:
    """Return the statistics of queues.

    Args:
        connection: to the history.
        queue: of this one only.
        limit: how many queues, types and sources are told of one by one, :data:`MAX_NAMES` at most.
        now: when the last hour and the last day end.

    Example:
        >>> from clew.history.reading import Reader
        >>> with Reader("sqlite:////nowhere/history.db").open() as connection:
        ...     report(connection).overall.total.sent
        0
    """
    now = now or clock.utc_now()
    overall = _Windowed()
    parts: tuple[defaultdict[str, _Windowed], ...] = tuple(defaultdict(_Windowed) for _ in range(3))
    queues, types, sources = parts
    for window, (name, kind, source, direction, status, *numbers) in _totals(connection, queue, now):
        for known in (overall, queues[name], types[kind], sources[source]):
            getattr(known, window).add((direction, status), *numbers)
    limit = max(1, min(limit, MAX_NAMES))
    told = [_told(part, limit) for part in parts]
    return QueueReport(
        overall=overall.windows(queue or ""),
        queues=told[0],
        types=told[1],
        sources=told[2],
        is_cut=any(len(part) > limit for part in parts),
    )


def _told(part: Mapping[str, _Windowed], limit: int) -> list[Windows]:
    return [known.windows(name) for name, known in sorted(part.items())[:limit]]


def _totals(connection: Connection, queue: str | None, now: datetime) -> Iterable[tuple[str, Any]]:
    total = QueueMessageTotal
    keys = (total.queue, total.type, total.source, total.direction, total.status)
    sums = [func.sum(column) for column in (total.messages, total.waits, total.wait_s, total.duration_s)]
    windows: tuple[tuple[str, Grain, float | None], ...] = (
        ("total", "day", None),
        ("last_day", "hour", _DAY_S),
        ("last_hour", "minute", _HOUR_S),
    )
    for window, grain, length_s in windows:
        query = select(*keys, *sums).where(total.grain == grain).group_by(*keys)
        if length_s is not None:
            query = query.where(total.since >= begin_of(now - timedelta(seconds=length_s), grain))
        if queue is not None:
            query = query.where(total.queue == queue)
        for row in connection.execute(query.having(func.sum(total.messages) != 0)).all():
            yield window, row


def depths(connection: Connection, *, queue: str | None = None, limit: int = MAX_NAMES) -> Sequence[Row]:
    """Return what waited in watched queues when they were looked at last: those that were within a day, by name.

    Args:
        connection: to the history.
        queue: of this one only.
        limit: how many, :data:`MAX_NAMES` at most.

    Example:
        >>> from clew.history.reading import Reader
        >>> with Reader("sqlite:////nowhere/history.db").open() as connection:
        ...     depths(connection)
        []
    """
    table: Any = QueueDepth.__table__
    query = select(table).where(table.c.observed_at >= clock.utc_now() - timedelta(seconds=DEPTH_KNOWN_S))
    if queue is not None:
        query = query.where(table.c.queue == queue)
    query = query.order_by(table.c.queue, table.c.consumer_group, table.c.id).limit(max(1, min(limit, MAX_NAMES)))
    return [row._mapping for row in connection.execute(query)]
