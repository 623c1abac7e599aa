"""Work whose process is gone: marked ``lost`` exactly once, by whichever process notices. What goes on is kept alive by a heartbeat.

A process that can be looked for, because it is on this machine, is looked for: its work is not lost while it lives, however
busy or stopped it is, and lost at once when it is gone. Of others the heartbeat is watched: one that has not changed for as long
as four of it should take is lost. The watcher counts that time by its own monotonic clock, and only while it can read the
database itself: neither a change of a wall clock nor an outage of the database makes anything lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags
from sqlalchemy import ColumnElement, Connection, Row, Table, case, delete, select, update

from clew import clock
from clew.catalog import semconv
from clew.catalog.kind import Metric
from clew.catalog.metrics import AGENT_TASKS_LOST, HANDOFF_PROBLEMS, JOB_LOST
from clew.engine.context import Carried, with_correlation_id
from clew.engine.metrics import registry
from clew.engine.runtime import current_log_stream
from clew.history import tally
from clew.history.database import Database
from clew.history.models import Agent, AgentTask, Handoff, JobRun, ScheduledJob
from clew.history.processes import is_gone
from clew.pipeline.breaker import LONGEST_PAUSE_S

if TYPE_CHECKING:
    from clew.history.recorder import Recorder

BEATS: Final = 4
_GONE: Final = "its process ended before it did"
_SILENT: Final = "its heartbeat stopped"
# A process may leave a database alone for so long that was away, and goes on beating only then
_RECOVERY_S: Final = LONGEST_PAUSE_S * 1.2
_MAX_AT_ONCE: Final = 1_000


@dataclass(frozen=True, kw_only=True)
class Work:
    """Records of work that goes on in processes, and how it is told that some of it is lost.

    Attributes:
        model: their table.
        goes_on: which of them are not over.
        event: the log event.
        logger: who writes it.
        fields: the event's fields, by the columns that they are taken from.
        reason: the field that says why it is lost.
        metric: counts it.
        labels: the metric's labels, by the columns that they are taken from.
        more_labels: labels that are the same for all.
        and_then: what else is to be marked with it.
    """

    model: Any
    goes_on: ColumnElement[bool]
    event: str
    logger: str
    fields: Mapping[str, str]
    reason: str
    metric: Metric
    labels: Mapping[str, str]
    more_labels: Mapping[str, str] = field(default_factory=dict)
    and_then: Callable[[Connection, Row[Any], Mapping[str, Any]], None] | None = None

    @property
    def table(self) -> Table:
        """Their table."""
        table: Table = self.model.__table__
        return table

    def going_on(self) -> Any:
        """Return the query for those that go on, in the order of their ids, as whoever ends work locks them."""
        names = dict.fromkeys(
            (
                "id",
                "pid",
                "host",
                "process_key",
                "heartbeat_at",
                "heartbeat_s",
                "trace_id",
                "span_id",
                "correlation_id",
                *self.fields.values(),
                *self.labels.values(),
                *tally.reads(self.table.name),
            )
        )
        query = select(*(self.table.c[name] for name in names)).where(self.goes_on)
        return query.order_by(self.table.c.id).limit(_MAX_AT_ONCE)


def _lose_handoff(connection: Connection, task: Row[Any], values: Mapping[str, Any]) -> None:
    """Mark the handoff whose task is lost, where nobody else waits for its end."""
    table: Table = Handoff.__table__  # type: ignore[assignment]
    if task.handoff_id is None:
        return
    is_open = (table.c.id == task.handoff_id, table.c.finished_at.is_(None), table.c.mode == "pass_control")
    before = connection.execute(select(*(table.c[name] for name in tally.reads(table.name))).where(*is_open)).first()
    if before is not None and connection.execute(update(table).where(*is_open).values(values)).rowcount == 1:
        tally.shift(connection, table.name, [(dict(before._mapping), {**before._mapping, **values})])


WORK: Final = (
    Work(
        model=JobRun,
        goes_on=JobRun.status == "running",
        event="job_lost",
        logger="clew.job",
        fields={"clew.job.name": "job", "clew.job.run.id": "id"},
        reason="clew.job.lost.reason",
        metric=JOB_LOST,
        labels={"clew.job.name": "job"},
    ),
    Work(
        model=AgentTask,
        goes_on=AgentTask.status == "running",
        event="agent_task_lost",
        logger="clew.agent.task",
        fields={
            semconv.GEN_AI_AGENT_NAME: "agent",
            "clew.agent.task.id": "id",
            "clew.task.id": "task_id",
            "clew.handoff.id": "handoff_id",
        },
        reason="clew.agent.lost.reason",
        metric=AGENT_TASKS_LOST,
        labels={semconv.GEN_AI_AGENT_NAME: "agent"},
        and_then=_lose_handoff,
    ),
    Work(
        model=Handoff,
        # One that passes control lives on without the process that handed over
        goes_on=Handoff.finished_at.is_(None) & Handoff.process_key.is_not(None),
        event="agent_handoff_lost",
        logger="clew.agent.handoff",
        fields={
            "clew.handoff.id": "id",
            "clew.handoff.source": "source",
            semconv.GEN_AI_TRANSFER_TARGET_NAME: "target",
            "clew.task.id": "task_id",
        },
        reason="clew.agent.lost.reason",
        metric=HANDOFF_PROBLEMS,
        labels={"clew.handoff.source": "source", semconv.GEN_AI_TRANSFER_TARGET_NAME: "target"},
        more_labels={"clew.handoff.problem": "lost"},
    ),
)
"""What may be lost."""


@dataclass(frozen=True, kw_only=True)
class Presence:
    """Rows that say what a process has, and what becomes of those of a process that is gone.

    Attributes:
        model: their table.
        is_there: which of them are of processes that are taken to live.
        leave: does what is to be done about rows for which a condition holds.
    """

    model: Any
    is_there: ColumnElement[bool]
    leave: Callable[[Connection, ColumnElement[bool]], object]


PRESENCES: Final = (
    Presence(
        model=ScheduledJob,
        is_there=ScheduledJob.process_key.is_not(None),
        leave=lambda connection, condition: connection.execute(delete(ScheduledJob).where(condition)),
    ),
    Presence(
        model=Agent,
        is_there=Agent.gone_at.is_(None) & Agent.process_key.is_not(None),
        leave=lambda connection, condition: connection.execute(
            update(Agent).where(condition, Agent.gone_at.is_(None)).values(gone_at=clock.utc_now(), active=0)
        ),
    ),
)
"""What processes are told to have while they live."""


@dataclass(slots=True, kw_only=True)
class _Silence:
    """How long a heartbeat has been watched without a change."""

    heartbeat_at: datetime | None
    seconds: float


_Lost = tuple[Work, Row[Any], str]


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
        """Mark the work that is lost, and what processes had that are gone; return how much work that was.

        Args:
            connection: to read with.
            database: where it is marked.
        """
        passed_s = self._passed_s()
        seen: dict[Any, _Silence] = {}
        lost: list[_Lost] = []
        for work in WORK:
            for row in connection.execute(work.going_on()):
                reason = self._judge((work.event, row.id), row, passed_s, seen)
                if reason is not None:
                    lost.append((work, row, reason))
        silent = [
            (presence, row.process_key)
            for presence in PRESENCES
            for row in connection.execute(_processes(presence))
            if self._judge((presence.model, row.process_key), row, passed_s, seen) is not None
        ]
        self._silences = seen
        _leave(database, silent)
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
        gone = _is_gone(row)
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
    """Mark what is lost because its process was on this machine and is gone, and return how much work that was.

    For who reads the history without watching it, such as a command line. Whether a process on another machine is gone, one look
    does not tell.

    Args:
        database: the history.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database is away.
    """
    lost: list[_Lost] = []
    silent: list[tuple[Presence, str]] = []
    with database.read() as connection:
        for work in WORK:
            lost += [(work, row, _GONE) for row in connection.execute(work.going_on()) if _is_gone(row)]
        for presence in PRESENCES:
            gone = [row.process_key for row in connection.execute(_processes(presence)) if _is_gone(row)]
            silent += [(presence, key) for key in gone]
    _leave(database, silent)
    return _mark(database, lost)


def _is_gone(row: Row[Any]) -> bool | None:
    return is_gone(row.pid, row.process_key) if row.process_key is not None and row.pid is not None else None


def _processes(presence: Presence) -> Any:
    columns = (getattr(presence.model, name) for name in ("process_key", "pid", "heartbeat_at", "heartbeat_s"))
    return select(*columns).where(presence.is_there).distinct()


def _leave(database: Database, silent: Iterable[tuple[Presence, str]]) -> None:
    silent = list(silent)
    for presence in PRESENCES:
        if keys := [key for one, key in silent if one is presence]:
            with database.write() as connection:
                presence.leave(connection, presence.model.process_key.in_(keys))


def _mark(database: Database, lost: Iterable[_Lost]) -> int:
    marked: list[_Lost] = []
    lost = list(lost)
    if lost:
        with database.write() as connection:
            marked = [one for one in lost if _mark_one(connection, *one)]
    for one in marked:
        _tell(*one)
    return len(marked)


def _mark_one(connection: Connection, work: Work, row: Row[Any], reason: str) -> bool:
    """Mark something as lost, unless it has ended, or somebody else has marked it, or its heart beats after all."""
    table = work.table
    unchanged = table.c.heartbeat_at == row.heartbeat_at if row.heartbeat_at else table.c.heartbeat_at.is_(None)
    statement = update(table).where(table.c.id == row.id, work.goes_on, unchanged)
    values = {"status": "lost", "finished_at": clock.utc_now(), "error_type": "lost", "error_message": reason}
    if connection.execute(statement.values(values)).rowcount != 1:
        return False
    tally.shift(connection, table.name, [(dict(row._mapping), {**row._mapping, **values})])
    if work.and_then is not None:
        work.and_then(connection, row, values)
    return True


def _tell(work: Work, row: Row[Any], reason: str) -> None:
    fields = {name: value for name, column in work.fields.items() if (value := row._mapping[column]) is not None}
    fields |= {work.reason: reason, "host.name": row.host, "process.pid": row.pid}
    labels = {label: row._mapping[column] for label, column in work.labels.items()} | dict(work.more_labels)
    with thread_of(row):
        current_log_stream().take("error", work.event, work.logger, fields)
        registry.declared(work.metric).add(1, **labels)


def thread_of(row: Row[Any]) -> Carried:
    """Return the thread that a record belongs to, for what is to be told about it.

    Args:
        row: it has ``trace_id``, ``span_id`` and ``correlation_id``.
    """
    context = Context()
    if row.correlation_id:
        context = with_correlation_id(row.correlation_id, context)
    if row.trace_id and row.span_id:
        span = SpanContext(int(row.trace_id, 16), int(row.span_id, 16), is_remote=True, trace_flags=TraceFlags(1))
        context = trace.set_span_in_context(NonRecordingSpan(span), context)
    return Carried(context)


Shares = Mapping[str, float | None]
"""What goes on in this process, by id, with how much of it is done where that is known."""


class Heart:
    """Says for all work of this process that it goes on, and how far it is: one UPDATE for each table."""

    def __init__(self) -> None:
        self._lives: dict[str, tuple[Work, Callable[[], Shares]]] = {}

    def keep_alive(self, model: Any, lives: Callable[[], Shares]) -> None:
        """Have the work of a table kept alive.

        Args:
            model: the table.
            lives: returns what goes on in this process now.
        """
        work = next(one for one in WORK if one.model is model)
        self._lives[work.table.name] = work, lives

    def beat(self, connection: Connection) -> None:
        """Say so.

        Args:
            connection: within a transaction.
        """
        for work, lives in list(self._lives.values()):
            known = lives()
            if not known:
                continue
            table = work.table
            values: dict[str, Any] = {"heartbeat_at": clock.utc_now()}
            shares = {identity: share for identity, share in known.items() if share is not None}
            if shares:
                values["progress"] = case(shares, value=table.c.id, else_=table.c.progress)
            connection.execute(update(table).where(table.c.id.in_(sorted(known)), work.goes_on).values(values))


heart: Final = Heart()
"""This process's."""


def begin(recorder: Recorder) -> None:
    """Have a process's work kept alive, and that of others watched, from now on.

    Args:
        recorder: of this process; once is enough.
    """
    from clew.history.recorder import Chore

    interval_s = recorder.settings.heartbeat_s
    watch = Watch(interval_s)
    recorder.add_chore(Chore(name="heartbeat", interval_s=interval_s, do=heart.beat))
    recorder.add_chore(
        Chore(name="lost", interval_s=interval_s, do=lambda at: watch.look(at, recorder.database), writes=False)
    )
