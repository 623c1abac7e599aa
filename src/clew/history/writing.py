"""How rows get into the tables: idempotently, with the totals that statistics are read from in the same transaction."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any, Final, Literal

from sqlalchemy import Connection, Table, select
from sqlalchemy.dialects import postgresql, sqlite

from clew.history.models import RECORDS, JobRun, JobRunTotal

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
        table: Table = RECORDS[table_name].__table__  # type: ignore[assignment]
        rows = [dict(change.row) for change in group]
        if is_end and table_name == JobRun.__tablename__:
            _count(connection, rows)
        # Rows of one statement have the same columns
        rows.sort(key=sorted)
        for columns, alike in groupby(rows, key=sorted):
            insert = insert_into(connection, table)
            if is_end:
                kept = {name: insert.excluded[name] for name in columns if name != "id"}
                statement = insert.on_conflict_do_update(index_elements=["id"], set_=kept)
            else:
                statement = insert.on_conflict_do_nothing(index_elements=["id"])
            connection.execute(statement, list(alike))


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
    """Add to the totals.

    Args:
        connection: within a transaction.
        deltas: runs and seconds to add, by job, hour, status and bucket.
    """
    rows = [
        {"job": job, "hour": hour, "status": status, "bucket": bucket, "runs": runs, "duration_s": seconds}
        for (job, hour, status, bucket), (runs, seconds) in sorted(deltas.items())
        if runs or seconds
    ]
    if not rows:
        return
    table: Table = JobRunTotal.__table__  # type: ignore[assignment]
    insert = insert_into(connection, table)
    statement = insert.on_conflict_do_update(
        index_elements=["job", "hour", "status", "bucket"],
        set_={
            "runs": table.c.runs + insert.excluded.runs,
            "duration_s": table.c.duration_s + insert.excluded.duration_s,
        },
    )
    connection.execute(statement, rows)


def total_key(row: Mapping[str, Any]) -> tuple[str, datetime, str, int] | None:
    """Return where an ended run is counted; ``None`` while it has not ended."""
    ended = row.get("finished_at")
    if ended is None:
        return None
    hour = ended.replace(minute=0, second=0, microsecond=0)
    return row["job"], hour, row["status"], bucket_of(row.get("duration_s"))


def _count(connection: Connection, rows: list[dict[str, Any]]) -> None:
    """Count runs that end, and take back what was counted of them before: one taken for lost may end after all."""
    known: dict[str, Mapping[str, Any]] = {}
    columns = (JobRun.id, JobRun.job, JobRun.status, JobRun.finished_at, JobRun.duration_s)
    # Those that have not ended as well: they are locked, lest another process marks them as lost at the same time
    query = select(*columns).where(JobRun.id.in_([row["id"] for row in rows])).order_by(JobRun.id)
    for found in connection.execute(query.with_for_update() if connection.dialect.name != "sqlite" else query):
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


def insert_into(connection: Connection, table: Table) -> Any:
    """Return an INSERT that can say what is done about rows that are there already, as the database has it."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)
