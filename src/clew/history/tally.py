"""The totals that statistics are read from: what each record adds to which of them.

They are kept in the transaction that writes the record, so that they are never off, whatever is written twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, Literal

from sqlalchemy import Connection, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from clew.history.models import (
    AgentTask,
    AgentTaskTotal,
    Base,
    Handoff,
    HandoffTotal,
    JobRun,
    JobRunDailyTotal,
    JobRunTotal,
    LlmCall,
    LlmUsageTotal,
    QueueMessage,
    QueueMessageTotal,
)

Grain = Literal["minute", "hour", "day"]
Key = tuple[Any, ...]
Counted = Callable[[Mapping[str, Any]], Iterable[tuple[Key, tuple[float, ...]]]]

# Eight buckets to a doubling, as in an exponential histogram of scale 3: what is read from one is off by 4.5 % at most
_BUCKETS_PER_DOUBLING: Final = 8
_LEAST_DURATION_S: Final = 1e-6
NO_DURATION: Final = -1_000


def bucket_of(duration_s: float | None) -> int:
    """Return the bucket of a duration.

    Example:
        >>> bucket_of(1.0), bucket_of(2.0), bucket_of(None)
        (0, 8, -1000)
    """
    if duration_s is None:
        return NO_DURATION
    return math.floor(math.log2(max(duration_s, _LEAST_DURATION_S)) * _BUCKETS_PER_DOUBLING)


def middle_s(bucket: int) -> float:
    """Return the duration that stands for a bucket, in seconds.

    Example:
        >>> round(middle_s(bucket_of(1.0)), 3)
        1.044
    """
    return float(2 ** ((bucket + 0.5) / _BUCKETS_PER_DOUBLING))


def begin_of(at: datetime, grain: Grain) -> datetime:
    """Return the beginning of the minute, the hour or the day, in UTC, that a time is in.

    Example:
        >>> begin_of(datetime(2026, 1, 31, 12, 34, 56, tzinfo=UTC), "hour").isoformat()
        '2026-01-31T12:00:00+00:00'
    """
    minute = at.astimezone(UTC).replace(second=0, microsecond=0)
    if grain == "minute":
        return minute
    return minute.replace(minute=0) if grain == "hour" else minute.replace(hour=0, minute=0)


@dataclass(frozen=True, kw_only=True)
class Tally:
    """What the records of a table add to a table of totals.

    Attributes:
        totals: the table of totals; its primary key tells the totals apart, its other columns are added to.
        reads: the columns of a record that it depends on.
        of: returns the keys that a record counts for, in the order of the primary key, each with what is added to the other columns,
            in their order; nothing while the record is not over.
    """

    totals: type[Base]
    reads: tuple[str, ...]
    of: Counted


def _run(grain: Grain) -> Counted:
    def counted(row: Mapping[str, Any]) -> Iterable[tuple[Key, tuple[float, ...]]]:
        ended = row.get("finished_at")
        if ended is None:
            return
        duration_s = row.get("duration_s")
        since, bucket = begin_of(ended, grain), bucket_of(duration_s)
        key = (
            (row["job"], since, row["status"], bucket)
            if grain == "hour"
            else (row["job"], row["status"], bucket, since)
        )
        yield key, (1, duration_s or 0.0)

    return counted


MAX_DISTINCT: Final = 500
OTHER: Final = "(other)"
"""Stands for what there were too many of, in totals."""

_known: Final[dict[str, set[str]]] = {"queue": set(), "type": set(), "source": set()}


def _bounded(column: str, value: str | None) -> str:
    """Return what totals are told apart by: a producer may make up a type, or a queue, for each message."""
    if not value:
        return ""
    known = _known[column]
    if value not in known:
        if len(known) >= MAX_DISTINCT:
            return OTHER
        known.add(value)
    return value


def _message(row: Mapping[str, Any]) -> Iterable[tuple[Key, tuple[float, ...]]]:
    messages, wait_s = row.get("messages", 1), row.get("wait_s")
    numbers = (messages, 0 if wait_s is None else messages, (wait_s or 0.0) * messages, row.get("duration_s") or 0.0)
    of = (
        _bounded("queue", row["queue"]),
        row["direction"],
        row["status"],
        _bounded("type", row.get("type")),
        _bounded("source", row.get("source")),
    )
    minute = begin_of(row["recorded_at"], "minute")
    hour = minute.replace(minute=0)
    for grain, since in (("minute", minute), ("hour", hour), ("day", hour.replace(hour=0))):
        yield (grain, since, *of), numbers


def _task(row: Mapping[str, Any]) -> Iterable[tuple[Key, tuple[float, ...]]]:
    ended = row.get("finished_at")
    if ended is None:
        return
    duration_s = row.get("duration_s")
    of = (row["agent"], row["type"], row["status"], bucket_of(duration_s))
    for grain in ("hour", "day"):
        yield (grain, begin_of(ended, grain), *of), (1, duration_s or 0.0)


def _handoff(row: Mapping[str, Any]) -> Iterable[tuple[Key, tuple[float, ...]]]:
    wait_s = row.get("wait_s")
    numbers = (1, 0 if wait_s is None else 1, wait_s or 0.0, row.get("duration_s") or 0.0)
    of = (row["source"], row["target"], row["mode"], row["status"])
    # Also while it goes on: a total moves on with its status
    for grain in ("hour", "day"):
        yield (grain, begin_of(row["handed_at"], grain), *of), numbers


def _call(row: Mapping[str, Any]) -> Iterable[tuple[Key, tuple[float, ...]]]:
    cost_usd = row.get("cost_usd")
    numbers = (
        1,
        1 if row.get("is_cached") else 0,
        0 if cost_usd is None else 1,
        row.get("input_tokens") or 0,
        row.get("output_tokens") or 0,
        row.get("cache_read_tokens") or 0,
        cost_usd or 0.0,
        row.get("duration_s") or 0.0,
    )
    of = (
        ("model", row["provider"], row["model"]),
        ("agent", "", row.get("agent") or ""),
        ("user", "", row.get("user_id") or ""),
    )
    for grain in ("hour", "day"):
        since = begin_of(row["started_at"], grain)
        for dimension, provider, name in of:
            yield (grain, dimension, since, row["service"], provider, name, row["status"]), numbers


_RUN: Final = ("job", "status", "finished_at", "duration_s")
_TIMED: Final = ("status", "duration_s")
TALLIES: Final[dict[str, tuple[Tally, ...]]] = {
    JobRun.__tablename__: (
        Tally(totals=JobRunTotal, reads=_RUN, of=_run("hour")),
        Tally(totals=JobRunDailyTotal, reads=_RUN, of=_run("day")),
    ),
    QueueMessage.__tablename__: (
        Tally(
            totals=QueueMessageTotal,
            reads=(*_TIMED, "queue", "direction", "type", "source", "messages", "wait_s", "recorded_at"),
            of=_message,
        ),
    ),
    AgentTask.__tablename__: (Tally(totals=AgentTaskTotal, reads=(*_TIMED, "agent", "type", "finished_at"), of=_task),),
    Handoff.__tablename__: (
        Tally(
            totals=HandoffTotal,
            reads=(*_TIMED, "source", "target", "mode", "handed_at", "wait_s"),
            of=_handoff,
        ),
    ),
    LlmCall.__tablename__: (
        Tally(
            totals=LlmUsageTotal,
            reads=(
                *_TIMED,
                "service",
                "provider",
                "model",
                "agent",
                "user_id",
                "started_at",
                "is_cached",
                "cost_usd",
                "input_tokens",
                "output_tokens",
                "cache_read_tokens",
            ),
            of=_call,
        ),
    ),
}
"""What is counted of the records of each table."""


def count(connection: Connection, table: str, rows: Iterable[Mapping[str, Any]], *, replaces: bool = False) -> None:
    """Add records to their totals, and take back what was counted of them before: a run taken for lost may end after all.

    Args:
        connection: within the transaction that writes them, before it does.
        table: the name of theirs.
        rows: what is about to be written.
        replaces: whether they are put in the place of what is there; else what is there stays as it is, and counted.
    """
    tallies = TALLIES.get(table, ())
    # One of a table's totals counts a record, or all do
    new = [row for row in rows if replaces or any(True for _ in tallies[0].of(row))] if tallies else []
    if not tallies or not new:
        return
    known: dict[str, Mapping[str, Any]] = {}
    # Also those that are not over: another process may be about to mark them
    query = _before(connection.dialect.name, table)
    for found in connection.execute(query, {"ids": sorted({row["id"] for row in new})}):
        known[found.id] = dict(found._mapping)
    changes: list[tuple[Mapping[str, Any], int]] = []
    for row in new:
        before = known.get(row["id"])
        if before is not None:
            if not replaces:
                continue
            # What is not written stays what it is
            row = {**before, **row}  # noqa: PLW2901 - it is what is counted
            changes.append((before, -1))
        changes.append((row, 1))
        known[row["id"]] = row
    for tally in tallies:
        _add(connection, tally, changes)


def add(connection: Connection, table: str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add records to their totals of which nothing was counted before.

    Args:
        connection: within a transaction.
        table: the name of theirs.
        rows: what is in the table now.
    """
    changes = [(row, 1) for row in rows]
    for tally in TALLIES.get(table, ()):
        _add(connection, tally, changes)


def shift(
    connection: Connection, table: str, changes: Iterable[tuple[Mapping[str, Any] | None, Mapping[str, Any]]]
) -> None:
    """Count records anew that somebody has changed within this transaction.

    Args:
        connection: within the transaction that changes them, which has locked them.
        table: the name of theirs.
        changes: each record as it was, ``None`` for a new one, and as it is.
    """
    signed = [(row, sign) for before, after in changes for row, sign in ((before, -1), (after, 1)) if row is not None]
    for tally in TALLIES.get(table, ()):
        _add(connection, tally, signed)


def reads(table: str) -> tuple[str, ...]:
    """Return the columns that the totals of a table's records depend on."""
    return tuple(dict.fromkeys(name for tally in TALLIES.get(table, ()) for name in tally.reads))


def _add(connection: Connection, tally: Tally, changes: Iterable[tuple[Mapping[str, Any], int]]) -> None:
    deltas: dict[Key, list[float]] = {}
    for row, sign in changes:
        for key, numbers in tally.of(row):
            sums = deltas.setdefault(key, [0] * len(numbers))
            for index, number in enumerate(numbers):
                sums[index] += sign * number
    keys, sums_of = columns_of(tally.totals)
    rows = [
        dict(zip((*keys, *sums_of), (*key, *sums), strict=True))
        # All processes in the same order, or two could wait for each other
        for key, sums in sorted(deltas.items())
        if any(sums)
    ]
    if rows:
        connection.execute(_addition(connection.dialect.name, tally.totals), rows)


# Made once: to put a statement together takes longer than to execute it


@lru_cache
def columns_of(totals: type[Base]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the columns that tell totals apart, and those that are added to."""
    table: Any = totals.__table__
    keys = tuple(column.name for column in table.primary_key.columns)
    return keys, tuple(column.name for column in table.c if column.name not in keys)


@lru_cache
def _addition(dialect: str, totals: type[Base]) -> Any:
    table: Any = totals.__table__
    insert = sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)
    keys, sums = columns_of(totals)
    return insert.on_conflict_do_update(
        index_elements=list(keys), set_={name: table.c[name] + insert.excluded[name] for name in sums}
    )


@lru_cache
def _before(dialect: str, table_name: str) -> Any:
    table = Base.metadata.tables[table_name]
    query = select(table.c.id, *(table.c[name] for name in reads(table_name)))
    query = query.where(table.c.id.in_(bindparam("ids", expanding=True))).order_by(table.c.id)
    return query if dialect == "sqlite" else query.with_for_update()
