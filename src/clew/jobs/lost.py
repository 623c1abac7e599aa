"""Runs whose process is gone: marked ``lost`` exactly once, by whichever process notices.

A process that can be looked for, because it is on this machine, is looked for: a run is not lost while its process lives, however
busy or stopped that is, and lost at once when it is gone. Of others the heartbeat is watched: one that has not changed for as long
as four of it should take is lost. The watcher counts that time by its own monotonic clock, and only while it can read the
database itself: neither a change of a wall clock nor an outage of the database makes a run lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from sqlalchemy import Connection, Row, Table, delete, select, update

from clew import clock
from clew.catalog.metrics import JOB_LOST
from clew.engine.context import Carried, with_correlation_id
from clew.engine.metrics import registry
from clew.engine.runtime import current_log_stream
from clew.history import tally
from clew.history.database import Database
from clew.history.models import JobRun, ScheduledJob
from clew.history.processes import is_gone
from clew.pipeline.breaker import LONGEST_PAUSE_S

BEATS: Final = 4
_GONE: Final = "its process ended before it did"
_SILENT: Final = "its heartbeat stopped"
# A process may leave a database alone for so long that was away, and goes on beating only then
_RECOVERY_S: Final = LONGEST_PAUSE_S * 1.2
_RUNS: Final[Table] = JobRun.__table__  # type: ignore[assignment]
_SCHEDULED: Final[Table] = ScheduledJob.__table__  # type: ignore[assignment]
_MAX_AT_ONCE: Final = 1_000


@dataclass(slots=True, kw_only=True)
class _Silence:
    """How long a heartbeat has been watched without a change."""

    heartbeat_at: datetime | None
    seconds: float


class Watch:
    """Watches the heartbeats of other processes.

    Args:
        interval_s: how often :meth:`look` is called.
    """

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._silences: dict[Any, _Silence] = {}
        self._looked_at: float | None = None

    def look(self, connection: Connection, database: Database) -> int:
        """Mark the runs that are lost, forget the schedules of processes that are gone, and return how many runs that were.

        Args:
            connection: to read with.
            database: where they are marked.
        """
        passed_s = self._passed_s()
        seen: dict[Any, _Silence] = {}
        lost: list[tuple[Row[Any], str]] = []
        for row in connection.execute(_running()):
            reason = self._judge(row.id, row, passed_s, seen)
            if reason is not None:
                lost.append((row, reason))
        silent = [
            row.process_key
            for row in connection.execute(_schedules())
            if self._judge(row.process_key, row, passed_s, seen) is not None
        ]
        self._silences = seen
        if silent:
            with database.write() as writing:
                writing.execute(delete(_SCHEDULED).where(_SCHEDULED.c.process_key.in_(silent)))
        return _mark(database, lost)

    def _passed_s(self) -> float:
        now = clock.monotonic_s()
        looked_at, self._looked_at = self._looked_at, now
        if looked_at is None:
            return 0.0
        passed_s = now - looked_at
        if passed_s > 3 * self._interval_s + 1.0:
            # The database was away, or this process was stopped: others may have been as well
            for silence in self._silences.values():
                silence.seconds = -_RECOVERY_S
            return 0.0
        return passed_s

    def _judge(self, key: Any, row: Row[Any], passed_s: float, seen: dict[Any, _Silence]) -> str | None:
        gone = is_gone(row.pid, row.process_key) if row.process_key is not None and row.pid is not None else None
        if gone is not None:
            return _GONE if gone else None
        silence = self._silences.get(key)
        if silence is None or silence.heartbeat_at != row.heartbeat_at:
            silence = _Silence(heartbeat_at=row.heartbeat_at, seconds=0.0)
        else:
            silence.seconds += passed_s
        seen[key] = silence
        beat_s = max(row.heartbeat_s or 0.0, self._interval_s)
        return _SILENT if silence.seconds >= BEATS * beat_s else None


def mark_lost(database: Database) -> int:
    """Mark the runs whose process was on this machine and is gone, and return how many those were.

    For who reads the history without watching it, such as a command line. Whether a process on another machine is gone, one look
    does not tell.

    Args:
        database: the history.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database is away.
    """
    with database.read() as connection:
        lost = [
            (row, _GONE)
            for row in connection.execute(_running())
            if row.process_key is not None and row.pid is not None and is_gone(row.pid, row.process_key)
        ]
    return _mark(database, lost)


def _running() -> Any:
    columns = (
        "id",
        "job",
        "pid",
        "host",
        "process_key",
        "heartbeat_at",
        "heartbeat_s",
        "trace_id",
        "span_id",
        "correlation_id",
    )
    # In the order of their ids, as whoever ends runs locks them
    query = select(*(_RUNS.c[name] for name in columns)).where(_RUNS.c.status == "running")
    return query.order_by(_RUNS.c.id).limit(_MAX_AT_ONCE)


def _schedules() -> Any:
    columns = (_SCHEDULED.c[name] for name in ("process_key", "pid", "heartbeat_at", "heartbeat_s"))
    return select(*columns).where(_SCHEDULED.c.process_key.is_not(None)).distinct()


def _mark(database: Database, lost: Iterable[tuple[Row[Any], str]]) -> int:
    marked: list[tuple[Row[Any], str]] = []
    lost = list(lost)
    if lost:
        with database.write() as connection:
            marked = [(row, reason) for row, reason in lost if _mark_one(connection, row, reason)]
    for row, reason in marked:
        _tell(row, reason)
    return len(marked)


def _mark_one(connection: Connection, row: Row[Any], reason: str) -> bool:
    """Mark a run, unless it has ended, or somebody else has marked it, or its heart beats after all."""
    now = clock.utc_now()
    unchanged = _RUNS.c.heartbeat_at == row.heartbeat_at if row.heartbeat_at else _RUNS.c.heartbeat_at.is_(None)
    statement = update(_RUNS).where(_RUNS.c.id == row.id, _RUNS.c.status == "running", unchanged)
    values = {"status": "lost", "finished_at": now, "error_type": "lost", "error_message": reason}
    if connection.execute(statement.values(values)).rowcount != 1:
        return False
    tally.add(connection, JobRun.__tablename__, [{"job": row.job, **values}])
    return True


def _tell(row: Row[Any], reason: str) -> None:
    context = Context()
    if row.correlation_id:
        context = with_correlation_id(row.correlation_id, context)
    if row.trace_id and row.span_id:
        span = SpanContext(int(row.trace_id, 16), int(row.span_id, 16), is_remote=True, trace_flags=TraceFlags(1))
        context = trace.set_span_in_context(NonRecordingSpan(span), context)
    fields = {
        "clew.job.name": row.job,
        "clew.job.run.id": row.id,
        "clew.job.lost.reason": reason,
        "host.name": row.host,
        "process.pid": row.pid,
    }
    with Carried(context):
        current_log_stream().take("error", "job_lost", "clew.job", fields)
        registry.declared(JOB_LOST).add(1, **{"clew.job.name": row.job})
