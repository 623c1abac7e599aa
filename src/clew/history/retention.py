"""Retention: what is older than is kept goes to an archive, which is verified by reading it back; only then is it deleted.

It may end at any moment and be begun anew: rows that were archived but not deleted are archived once more.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, bindparam, delete, func, or_, select, text, true

from clew import clock
from clew.history.archive import PARTIAL_SUFFIX, ArchiveError, ArchiveWriter, read, verify
from clew.history.database import Database
from clew.history.ids import least_id
from clew.history.messages import DEPTH_KNOWN_S
from clew.history.models import (
    AgentTask,
    AgentTaskTotal,
    Handoff,
    HandoffTotal,
    HealthCheck,
    JobCommand,
    JobRun,
    JobRunDailyTotal,
    JobRunTotal,
    LlmCall,
    LlmUsageTotal,
    QueueDepth,
    QueueMessage,
    QueueMessageTotal,
)
from clew.history.tally import Grain, begin_of
from clew.settings import Settings

logger = logging.getLogger("clew.history")

ROWS_PER_FILE: Final = 50_000
_AT_ONCE: Final = 1_000
_DAY_S: Final = 86_400.0
_ABANDONED_S: Final = 3_600.0
_CLEANING_LOCK: Final = 0x636C6578  # PostgreSQL's advisory lock, beside that of the upgrades
_GOING_ON: Final = ("scheduled", "running", "waiting", "accepted")


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Totals of some length of time.

    Attributes:
        model: their table.
        since: its column that says when that time begins.
        grain: how long it is.
        grain_column: the column that says so, where the table has several.
        most_s: how long they are kept at most, in seconds.
    """

    model: Any
    since: Any
    grain: Grain
    grain_column: Any = None
    most_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Kept:
    """How long rows of a table are kept.

    Attributes:
        model: the table.
        default_s: how long, in seconds, where no setting says otherwise.
        is_expired: returns the condition by which rows are older than a time, and over.
        totals: what is counted of them, and forgotten with them.
    """

    model: Any
    default_s: float
    is_expired: Callable[[datetime], ColumnElement[bool]]
    totals: tuple[Totals, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cleaned:
    """What was taken out of a table.

    Attributes:
        table: its name.
        rows: how many were archived and deleted.
        files: the archives.
    """

    table: str
    rows: int = 0
    files: tuple[Path, ...] = field(default=())


def _over(model: Any) -> Callable[[datetime], ColumnElement[bool]]:
    """Return the condition for work that may go on for long."""

    def is_expired(before: datetime) -> ColumnElement[bool]:
        return and_(
            model.id < least_id(before),
            model.recorded_at < before,
            model.status.not_in(_GOING_ON),
            or_(model.finished_at.is_(None), model.finished_at < before),
        )

    return is_expired


def _recorded(model: Any) -> Callable[[datetime], ColumnElement[bool]]:
    return lambda before: and_(model.id < least_id(before), model.recorded_at < before)


def _of_grains(model: Any, *grains: Grain, most_s: float | None = None) -> tuple[Totals, ...]:
    return tuple(
        Totals(model=model, since=model.since, grain=grain, grain_column=model.grain, most_s=most_s) for grain in grains
    )


TABLES: Final[dict[str, Kept]] = {
    kept.model.__tablename__: kept
    for kept in (
        Kept(
            model=JobRun,
            default_s=90 * _DAY_S,
            is_expired=_over(JobRun),
            totals=(
                Totals(model=JobRunTotal, since=JobRunTotal.hour, grain="hour"),
                Totals(model=JobRunDailyTotal, since=JobRunDailyTotal.day, grain="day"),
            ),
        ),
        Kept(
            model=QueueMessage,
            default_s=30 * _DAY_S,
            is_expired=_recorded(QueueMessage),
            totals=(
                *_of_grains(QueueMessageTotal, "minute", most_s=2 * _DAY_S),
                *_of_grains(QueueMessageTotal, "hour", "day"),
            ),
        ),
        Kept(
            model=AgentTask,
            default_s=90 * _DAY_S,
            is_expired=_over(AgentTask),
            totals=_of_grains(AgentTaskTotal, "hour", "day"),
        ),
        Kept(
            model=Handoff,
            default_s=90 * _DAY_S,
            # What nobody has picked up by then is not waited for
            is_expired=_recorded(Handoff),
            totals=_of_grains(HandoffTotal, "hour", "day"),
        ),
        Kept(
            model=LlmCall,
            default_s=90 * _DAY_S,
            is_expired=_recorded(LlmCall),
            totals=_of_grains(LlmUsageTotal, "hour", "day"),
        ),
        Kept(model=HealthCheck, default_s=7 * _DAY_S, is_expired=_recorded(HealthCheck)),
        Kept(
            model=JobCommand,
            default_s=90 * _DAY_S,
            is_expired=lambda before: and_(JobCommand.requested_at < before, JobCommand.done_at.is_not(None)),
        ),
    )
}
"""The tables that are cleaned up."""


def clean_up(database: Database, settings: Settings, *, now: datetime | None = None) -> list[Cleaned]:
    """Archive and delete what is older than the settings say. Where another process is at it, nothing is done.

    Args:
        database: whose tables are right.
        settings: how long each table's rows are kept, and where archives go.
        now: the time; by default that of the clock.

    Returns:
        What was taken out of each table; an empty list where another process is at it.

    Raises:
        clew.history.archive.ArchiveError: an archive could not be read back: nothing of it was deleted.
        OSError: the folder can't be written, or the disk is full: what was not archived was not deleted.
        sqlalchemy.exc.SQLAlchemyError: the database is away.
    """
    now = now or clock.utc_now()
    folder = settings.archive_path()
    if unknown := sorted(set(settings.retention_s) - set(TABLES)):
        logger.warning("CLEW_RETENTION_S: there is no table %s, but %s", ", ".join(unknown), ", ".join(TABLES))
    with _alone(database, folder) as alone:
        if not alone:
            return []
        _remove_abandoned(folder)
        _forget_depths(database, now)
        return [
            _clean_table(database, folder, kept, settings.retention_s.get(name, kept.default_s), now)
            for name, kept in TABLES.items()
        ]


def _clean_table(database: Database, folder: Path, kept: Kept, kept_s: float, now: datetime) -> Cleaned:
    table: str = kept.model.__tablename__
    before = now - timedelta(seconds=kept_s)
    condition = kept.is_expired(before)
    files: list[Path] = []
    rows = 0
    while True:
        with ArchiveWriter(folder, table) as archive:
            for page in _pages(database, kept.model, condition):
                archive.add(page)
        if archive.path is None:
            break
        if verify(archive.path) != archive.rows:
            raise ArchiveError(f"{archive.path} has not the rows that were written: nothing of it was deleted")
        deleted = _delete_archived(database, kept.model, condition, archive.path)
        rows += deleted
        files.append(archive.path)
        logger.info("%d rows of %s were archived in %s", archive.rows, table, archive.path)
        if not deleted:
            # Whatever keeps them, such as another process that puts them back, must not fill the disk with archives
            break
    for totals in kept.totals:
        latest = before if totals.most_s is None else max(before, now - timedelta(seconds=totals.most_s))
        _prune(database, totals, begin_of(latest, totals.grain))
    return Cleaned(table=table, rows=rows, files=tuple(files))


def _pages(database: Database, model: Any, condition: ColumnElement[bool]) -> Iterator[list[dict[str, Any]]]:
    """Yield expired rows by the order of their ids, up to as many as an archive has."""
    table = model.__table__
    query = select(table).where(condition, table.c.id > bindparam("after")).order_by(table.c.id).limit(_AT_ONCE)
    after = ""
    for _ in range(ROWS_PER_FILE // _AT_ONCE):
        with database.read() as connection:
            page = [dict(row) for row in connection.execute(query, {"after": after}).mappings()]
        if not page:
            return
        yield page
        after = page[-1]["id"]


def _delete_archived(database: Database, model: Any, condition: ColumnElement[bool], path: Path) -> int:
    table = model.__table__
    # One that has changed since may have become younger
    statement = delete(table).where(table.c.id.in_(bindparam("ids", expanding=True)), condition)
    deleted = 0
    ids: list[str] = []

    def flush() -> int:
        with database.write() as connection:
            return connection.execute(statement, {"ids": ids}).rowcount

    for row in read(path):
        ids.append(row["id"])
        if len(ids) >= _AT_ONCE:
            deleted += flush()
            ids = []
    return deleted + (flush() if ids else 0)


def _prune(database: Database, totals: Totals, until: datetime) -> None:
    """Delete the totals of times that lie before another as a whole, a day at a time."""
    of_grain = totals.grain_column == totals.grain if totals.grain_column is not None else true()
    while True:
        with database.write() as connection:
            first = connection.scalar(select(func.min(totals.since)).where(of_grain))
            if first is None or first >= until:
                break
            day = totals.since < min(until, first + timedelta(days=1))
            connection.execute(delete(totals.model).where(of_grain, day))


def _forget_depths(database: Database, now: datetime) -> None:
    """Delete what waited in queues that nobody looks at any more: it is no record of what happened, so it needs no archive."""
    with database.write() as connection:
        connection.execute(delete(QueueDepth).where(QueueDepth.observed_at < now - timedelta(seconds=DEPTH_KNOWN_S)))


@contextmanager
def _alone(database: Database, folder: Path) -> Iterator[bool]:
    """Tell whether no other process cleans up: none that writes to the same folder, and none in the same PostgreSQL."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        if database.is_sqlite:
            yield True
            return
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            taken = bool(connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _CLEANING_LOCK}))
            try:
                yield taken
            finally:
                if taken:
                    connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _CLEANING_LOCK})
    finally:
        os.close(descriptor)


def _remove_abandoned(folder: Path) -> None:
    """Remove what a process that died left unfinished."""
    for path in folder.glob(f"*{PARTIAL_SUFFIX}"):
        with suppress(OSError):
            if clock.now_ns() / 1e9 - path.stat().st_mtime > _ABANDONED_S:
                path.unlink()
