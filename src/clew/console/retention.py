"""Deleting what is too old, or too much, in steps short enough for writes to go between them."""

# ruff: noqa: S608 - what is put into statements are names from this package; values are always bound

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

# Per step, so that a step takes some tens of milliseconds.
_TRACES_PER_STEP = 200
_ROWS_PER_STEP = 5_000
_PAGES_PER_STEP = 1_000

# Trimming goes a little below the limit, so that the next batch does not start it again.
_TRIM_TO = 0.9

_Delete: TypeAlias = Callable[[sqlite3.Connection, int], int]

_DELETE_ORPHANS = (
    "DELETE FROM series WHERE NOT EXISTS (SELECT 1 FROM points WHERE series_id = series.id)",
    "DELETE FROM metrics WHERE NOT EXISTS (SELECT 1 FROM series WHERE metric_id = metrics.id)",
    (
        "DELETE FROM scopes WHERE NOT EXISTS (SELECT 1 FROM spans WHERE scope_id = scopes.id)"
        " AND NOT EXISTS (SELECT 1 FROM logs WHERE scope_id = scopes.id)"
        " AND NOT EXISTS (SELECT 1 FROM series WHERE scope_id = scopes.id)"
    ),
    "DELETE FROM resources WHERE NOT EXISTS (SELECT 1 FROM scopes WHERE resource_id = resources.id)",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetentionLimits:
    """How much telemetry is kept.

    Args:
        age_s: seconds since it came in; a trace counts from its latest span and is deleted as a whole.
        size_bytes: bytes of the database, None for no limit; the oldest goes first.

    Example:
        >>> RetentionLimits().age_s / 3600
        48.0
    """

    age_s: float = 48 * 3600.0
    size_bytes: int | None = 1024 * 1024 * 1024

    def __post_init__(self) -> None:
        if not self.age_s > 0:
            raise ValueError(f"age_s={self.age_s!r} is not usable: give the seconds to keep telemetry, above 0")
        if self.size_bytes is not None and self.size_bytes <= 0:
            raise ValueError(f"size_bytes={self.size_bytes!r} is not usable: give bytes above 0, or None for no limit")


def sweep(connection: sqlite3.Connection, limits: RetentionLimits, now_ns: int) -> Iterator[None]:
    """Delete what the limits do not cover; each step is a transaction of its own.

    Args:
        connection: the writing connection, outside a transaction.
        limits: what to keep.
        now_ns: the present, in Unix nanoseconds.

    Raises:
        sqlite3.Error: the database cannot be changed; the step at work is rolled back.
    """
    deleted = False
    cutoff_ns = now_ns - int(limits.age_s * 1e9)
    deletes: tuple[_Delete, ...] = (_delete_old_traces, _delete_old_logs, _delete_old_points)
    for delete in deletes:
        while _in_transaction(connection, delete, cutoff_ns):
            deleted = True
            yield
    if limits.size_bytes is not None and used_bytes(connection) > limits.size_bytes:
        while used_bytes(connection) > limits.size_bytes * _TRIM_TO and _delete_oldest(connection):
            deleted = True
            yield
    if deleted:
        _in_transaction(connection, _delete_orphans, cutoff_ns)
        yield
        while _free_pages(connection):
            # Fetched to its end: the pragma frees one page for each row it is asked for.
            connection.execute(f"PRAGMA incremental_vacuum({_PAGES_PER_STEP})").fetchall()
            yield


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return the bytes of the database that hold something."""
    (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    used: int = (pages - _free_pages(connection)) * page_bytes
    return used


def _free_pages(connection: sqlite3.Connection) -> int:
    free: int = connection.execute("PRAGMA freelist_count").fetchone()[0]
    return free


def _in_transaction(connection: sqlite3.Connection, delete: _Delete, cutoff_ns: int) -> int:
    connection.execute("BEGIN IMMEDIATE")
    try:
        count = delete(connection, cutoff_ns)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return count


def _delete_old_traces(connection: sqlite3.Connection, cutoff_ns: int) -> int:
    rows = connection.execute(
        "SELECT trace_id FROM traces WHERE received_ns < ? ORDER BY received_ns LIMIT ?", (cutoff_ns, _TRACES_PER_STEP)
    ).fetchall()
    connection.executemany("DELETE FROM spans WHERE trace_id = ?", rows)  # their links go with them
    connection.executemany("DELETE FROM traces WHERE trace_id = ?", rows)
    return len(rows)


def _delete_old_logs(connection: sqlite3.Connection, cutoff_ns: int) -> int:
    return _delete_old_rows(connection, "logs", cutoff_ns)


def _delete_old_points(connection: sqlite3.Connection, cutoff_ns: int) -> int:
    return _delete_old_rows(connection, "points", cutoff_ns)


def _delete_old_rows(connection: sqlite3.Connection, table: str, cutoff_ns: int) -> int:
    # Ids grow with the time of arrival, so looking at the lowest ones spares an index on it.
    return connection.execute(
        f"DELETE FROM {table} WHERE id IN (SELECT id FROM"
        f" (SELECT id, received_ns FROM {table} ORDER BY id LIMIT ?) WHERE received_ns < ?)",
        (_ROWS_PER_STEP, cutoff_ns),
    ).rowcount


def _delete_orphans(connection: sqlite3.Connection, _cutoff_ns: int) -> int:
    return sum(connection.execute(statement).rowcount for statement in _DELETE_ORPHANS)


def _delete_oldest(connection: sqlite3.Connection) -> int:
    """Delete one step's worth from whichever table has the oldest arrival."""
    oldest: list[tuple[int, _Delete]] = []
    for table, order, delete in (
        ("traces", "received_ns", _delete_old_traces),
        ("logs", "id", _delete_old_logs),
        ("points", "id", _delete_old_points),
    ):
        row = connection.execute(f"SELECT received_ns FROM {table} ORDER BY {order} LIMIT 1").fetchone()
        if row:
            oldest.append((row[0], delete))
    if not oldest:
        return 0
    _, delete_from_it = min(oldest, key=lambda item: item[0])
    return _in_transaction(connection, delete_from_it, 2**63 - 1)
