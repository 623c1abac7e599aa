"""How rows get into the tables: idempotently, with the totals that statistics are read from in the same transaction."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import groupby
from typing import Any, Final, Literal

from sqlalchemy import Connection, Table, bindparam, select
from sqlalchemy.dialects import postgresql, sqlite

from clew.history.models import Base, JobRun, JobRunDailyTotal, JobRunTotal

Verb = Literal["record", "end"]

# Eight buckets to a doubling, as in an exponential histogram of scale 3: what is read from one is off by 4.5 % at most
_BUCKETS_PER_DOUBLING: Final = 8
_LEAST_DURATION_S: Final = 1e-6
NO_DURATION: Final = -1_000


@dataclass(frozen=True, kw_only=True)
class Change:
    """A row to be written.

    Attributes:
        table: the table's name.
        row: all of its columns that are known.
        verb: ``record`` writes nothing where the row is there already; ``end`` puts these columns in its place.
    """

    table: str
    row: Mapping[str, Any]
    verb: Verb = "record"


def write(connection: Connection, changes: Iterable[Change]) -> None:
    """Write rows, each table's in the order given.

    Args:
        connection: within a transaction.
        changes: the rows.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database is away, or does not take a row.
    """
    ordered = sorted(changes, key=lambda change: (change.table, change.verb == "end"))
    for (table_name, is_end), group in groupby(ordered, key=lambda change: (change.table, change.verb == "end")):
        rows = [dict(change.row) for change in group]
        if is_end and table_name == JobRun.__tablename__:
            _count(connection, rows)
        # Rows of one statement have the same columns
        rows.sort(key=sorted)
        for columns, alike in groupby(rows, key=sorted):
            connection.execute(_insertion(connection.dialect.name, table_name, tuple(columns), is_end), list(alike))


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


def count_ended(connection: Connection, deltas: Mapping[tuple[str, datetime, str, int], tuple[int, float]]) -> None:
    """Add to the totals, those of the hours and those of the days.

    Args:
        connection: within a transaction.
        deltas: runs and seconds to add, by job, hour, status and bucket.
    """
    days: dict[tuple[str, datetime, str, int], tuple[int, float]] = {}
    for (job, hour, status, bucket), (runs, seconds) in deltas.items():
        key = (job, hour.astimezone(UTC).replace(hour=0), status, bucket)
        before = days.get(key, (0, 0.0))
        days[key] = before[0] + runs, before[1] + seconds
    for model, column, numbers in ((JobRunTotal, "hour", deltas), (JobRunDailyTotal, "day", days)):
        rows = [
            {"job": job, column: since, "status": status, "bucket": bucket, "runs": runs, "duration_s": seconds}
            # All processes in the same order, or two could wait for each other
            for (job, since, status, bucket), (runs, seconds) in sorted(numbers.items())
            if runs or seconds
        ]
        if rows:
            connection.execute(_addition(connection.dialect.name, model.__tablename__, column), rows)


def total_key(row: Mapping[str, Any]) -> tuple[str, datetime, str, int] | None:
    """Return where an ended run is counted; ``None`` while it has not ended."""
    ended = row.get("finished_at")
    if ended is None:
        return None
    hour = ended.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    return row["job"], hour, row["status"], bucket_of(row.get("duration_s"))


def _count(connection: Connection, rows: list[dict[str, Any]]) -> None:
    """Count runs that end, and take back what was counted of them before: one taken for lost may end after all."""
    known: dict[str, Mapping[str, Any]] = {}
    # Also those that have not ended: another process may be about to mark them
    query = _known_runs(connection.dialect.name)
    for found in connection.execute(query, {"ids": sorted({row["id"] for row in rows})}):
        known[found.id] = dict(found._mapping)
    runs: Counter[tuple[str, datetime, str, int]] = Counter()
    seconds: Counter[tuple[str, datetime, str, int]] = Counter()
    for row in rows:
        for one, sign in ((known.get(row["id"]), -1), (row, 1)):
            key = total_key(one) if one is not None else None
            if one is not None and key is not None:
                runs[key] += sign
                seconds[key] += sign * (one.get("duration_s") or 0.0)  # type: ignore[assignment]
        known[row["id"]] = row
    count_ended(connection, {key: (runs[key], float(seconds[key])) for key in runs})


# Made once: to put a statement together takes longer than to execute it


@lru_cache(maxsize=256)
def _insertion(dialect: str, table_name: str, columns: tuple[str, ...], is_end: bool) -> Any:  # noqa: FBT001 - a part of the key
    insert = _insert(dialect, table_name)
    if unknown := set(columns) - set(insert.table.columns.keys()):
        raise KeyError(f"{table_name} has no column {', '.join(sorted(unknown))}")
    if not is_end:
        return insert.on_conflict_do_nothing(index_elements=["id"])
    return insert.on_conflict_do_update(
        index_elements=["id"], set_={name: insert.excluded[name] for name in columns if name != "id"}
    )


@lru_cache
def _addition(dialect: str, table_name: str, column: str) -> Any:
    insert = _insert(dialect, table_name)
    table = insert.table
    return insert.on_conflict_do_update(
        index_elements=["job", column, "status", "bucket"],
        set_={
            "runs": table.c.runs + insert.excluded.runs,
            "duration_s": table.c.duration_s + insert.excluded.duration_s,
        },
    )


@lru_cache
def _known_runs(dialect: str) -> Any:
    columns = (JobRun.id, JobRun.job, JobRun.status, JobRun.finished_at, JobRun.duration_s)
    query = select(*columns).where(JobRun.id.in_(bindparam("ids", expanding=True))).order_by(JobRun.id)
    return query if dialect == "sqlite" else query.with_for_update()


def _insert(dialect: str, table_name: str) -> Any:
    table = Base.metadata.tables[table_name]
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)


def insert_into(connection: Connection, table: Table) -> Any:
    """Return an INSERT that can say what is done about rows that are there already, as the database has it."""
    return _insert(connection.dialect.name, table.name)
