"""The agents that processes registered, in which state they are, and how their tasks go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import Connection, Table, func, select

from clew import clock
from clew.history.job_statistics import _Sum
from clew.history.liveness import BEATS
from clew.history.models import Agent, AgentTask, AgentTaskTotal
from clew.history.processes import is_gone
from clew.history.totals import hour_of, stretches, until_hour

State = Literal["active", "idle", "failing", "gone"]

FAILURES: Final = 3
"""How many failures in a row make an agent failing."""
MAX_AGENTS: Final = 1_000
"""How many agents are told of."""
_LATE_S: Final = 5.0
_TABLE: Final[Table] = Agent.__table__  # type: ignore[assignment]
_ORDER: Final = ("failing", "active", "idle", "gone")
_READ: Final = [column for column in _TABLE.columns if column.key not in ("process", "process_started_at")]


@dataclass(frozen=True, kw_only=True)
class Place:
    """An agent in one process.

    Attributes:
        state: ``active``, ``idle``, ``failing`` or ``gone``.
        service: whose process it is.
        instance: which one.
        host: where it runs.
        pid: the process.
        version: of the agent.
        registered_at: since when it is there.
        heartbeat_at: the last sign of life.
        gone_at: when the process ended, or was found to be gone.
        active: tasks that it works on.
        tasks: tasks that it began.
        failures: those that failed.
        failures_in_a_row: how many failed since one did not.
        last_started_at: when it began a task last.
        last_finished_at: when it ended one last.
        last_error_type: of the last failure.
    """

    state: State
    service: str
    instance: str
    host: str | None
    pid: int | None
    version: str | None
    registered_at: datetime
    heartbeat_at: datetime | None
    gone_at: datetime | None
    active: int
    tasks: int
    failures: int
    failures_in_a_row: int
    last_started_at: datetime | None
    last_finished_at: datetime | None
    last_error_type: str | None


@dataclass(frozen=True, kw_only=True)
class RegisteredAgent:
    """An agent, over all processes that have it.

    Attributes:
        agent: its name.
        type: what kind of agent it is.
        version: of the newest one.
        state: ``failing`` where it is in one process, else ``active`` where it is in one, else ``idle``; ``gone`` where no process
            that has it lives.
        active: tasks that it works on.
        processes: how many that live have it.
        last_started_at: when it began a task last.
        last_finished_at: when it ended one last.
        last_error_type: of the last failure.
        places: it in each process, the newest first.
    """

    agent: str
    type: str
    version: str | None
    state: State
    active: int
    processes: int
    last_started_at: datetime | None
    last_finished_at: datetime | None
    last_error_type: str | None
    places: Sequence[Place]


def registered(
    connection: Connection,
    *,
    agent: str | None = None,
    type: str | None = None,
    service: str | None = None,
    state: State | None = None,
    limit: int | None = None,
) -> list[RegisteredAgent]:
    """Return the agents that processes registered, by name, in the state that they are in now.

    Args:
        connection: to the history.
        agent: this one only.
        type: of this kind only.
        service: those of this service only.
        state: those in this state only. It is found out process by process, so all the others are read, too.
        limit: how many; by default all.

    Example:
        >>> from clew.history.reading import Reader
        >>> with Reader("sqlite:////nowhere/history.db").open() as connection:
        ...     registered(connection)
        []
    """
    wanted = ((_TABLE.c.agent, agent), (_TABLE.c.type, type), (_TABLE.c.service, service))
    conditions = [column == value for column, value in wanted if value is not None]
    query = select(*_READ).where(*conditions).order_by(_TABLE.c.agent, _TABLE.c.registered_at.desc())
    if limit is not None and state is None:
        names = select(_TABLE.c.agent).where(*conditions).distinct().order_by(_TABLE.c.agent).limit(limit)
        query = query.where(_TABLE.c.agent.in_(names))
    alive: dict[tuple[Any, ...], bool] = {}
    found: defaultdict[str, list[Any]] = defaultdict(list)
    now = clock.utc_now()
    for row in connection.execute(query):
        process = (row.pid, row.process_key, row.gone_at, row.heartbeat_at)
        if process not in alive:
            alive[process] = _lives(row, now)
        found[row.agent].append((row, _state(row, lives=alive[process])))
    names_told = [name for name, rows in found.items() if state in (None, _state_of(rows))]
    return [_together(name, found[name]) for name in names_told[:limit]]


def _lives(row: Any, now: datetime) -> bool:
    if row.gone_at is not None:
        return False
    gone = is_gone(row.pid, row.process_key) if row.process_key is not None and row.pid is not None else None
    if gone is not None:
        return not gone
    silent_s = (now - row.heartbeat_at).total_seconds() if row.heartbeat_at is not None else 0.0
    return silent_s <= BEATS * (row.heartbeat_s or 0.0) + _LATE_S


def _state(row: Any, *, lives: bool) -> State:
    if not lives:
        return "gone"
    if row.failures_in_a_row >= FAILURES:
        return "failing"
    return "active" if row.active > 0 else "idle"


def _state_of(rows: Sequence[tuple[Any, State]]) -> State:
    return min((state for _, state in rows), key=_ORDER.index)


def _together(agent: str, rows: Sequence[tuple[Any, State]]) -> RegisteredAgent:
    names = [name for name in Place.__dataclass_fields__ if name != "state"]
    places = [Place(state=state, **{name: getattr(row, name) for name in names}) for row, state in rows]
    newest = rows[0][0]
    living = [place for place in places if place.state != "gone"]
    failed = [place for place in places if place.last_error_type is not None]
    return RegisteredAgent(
        agent=agent,
        type=newest.type,
        version=newest.version,
        state=_state_of(rows),
        active=sum(place.active for place in living),
        processes=len(living),
        last_started_at=_latest(place.last_started_at for place in places),
        last_finished_at=_latest(place.last_finished_at for place in places),
        last_error_type=max(failed, key=_ended).last_error_type if failed else None,
        places=places,
    )


def _ended(place: Place) -> datetime:
    return place.last_finished_at or place.registered_at


def _latest(times: Iterable[datetime | None]) -> datetime | None:
    return max((time for time in times if time is not None), default=None)


@dataclass(frozen=True, kw_only=True)
class AgentStatistics:
    """What is known of an agent's tasks that ended.

    Attributes:
        agent: its name.
        tasks: how many ended.
        ok: those that completed.
        failed: those that failed, or were lost with their process.
        cancelled: those that were cancelled.
        success_rate: the completed among the completed and the failed, from 0 to 1; ``None`` where there are neither.
        average_s: the mean duration.
        p50_s: half of the tasks took no longer than this, give or take 5 %.
        p95_s: 95 % of the tasks took no longer than this, give or take 5 %.
        active: tasks that go on now.
    """

    agent: str
    tasks: int = 0
    ok: int = 0
    failed: int = 0
    cancelled: int = 0
    success_rate: float | None = None
    average_s: float | None = None
    p50_s: float | None = None
    p95_s: float | None = None
    active: int = 0


@dataclass(frozen=True, kw_only=True)
class AgentReport:
    """What is known of all agents' tasks.

    Attributes:
        since: from when on, a whole hour; ``None`` for the beginning.
        until: until when, a whole hour; ``None`` for now.
        overall: of all agents together; its name is ``""``.
        agents: of each, by name.
        is_cut: there are more agents than these.
    """

    since: datetime | None
    until: datetime | None
    overall: AgentStatistics
    agents: Sequence[AgentStatistics]
    is_cut: bool = False


def statistics(
    connection: Connection,
    *,
    agents: Sequence[str] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int = MAX_AGENTS,
) -> AgentReport:
    """Return the statistics of agents: of tasks that ended within a time, which begins and ends with whole hours.

    Args:
        connection: to the history.
        agents: of these only; by default of all.
        since: from then on, with a time zone; by default from the beginning.
        until: until then, with a time zone; by default until now.
        limit: how many agents, :data:`MAX_AGENTS` at most.

    Example:
        >>> from clew.history.reading import Reader
        >>> with Reader("sqlite:////nowhere/history.db").open() as connection:
        ...     statistics(connection).overall.tasks
        0
    """
    overall = _Sum()
    sums = _sums(connection, agents, since, until, overall)
    names = sorted(sums)
    told = names[: max(1, min(limit, MAX_AGENTS))]
    return AgentReport(
        since=hour_of(since) if since is not None else None,
        until=until_hour(until) if until is not None else None,
        overall=_figures("", overall),
        agents=[_figures(name, sums[name]) for name in told],
        is_cut=len(names) > len(told),
    )


def _sums(
    connection: Connection,
    agents: Sequence[str] | None,
    since: datetime | None,
    until: datetime | None,
    overall: _Sum | None = None,
) -> dict[str, _Sum]:
    """Return what the totals of agents add up to, by name; that of all is added to ``overall``, where it is wanted."""
    model = AgentTaskTotal
    sums: defaultdict[str, _Sum] = defaultdict(_Sum)
    keys = (model.agent, model.status, model.bucket)
    for grain, begin, end in stretches(since, until):
        query = select(*keys, func.sum(model.tasks), func.sum(model.duration_s)).where(model.grain == grain)
        query = query.where(model.since >= begin) if begin is not None else query
        query = query.where(model.since < end) if end is not None else query
        query = query if agents is None else query.where(model.agent.in_(agents))
        for name, status, bucket, tasks, took_s in connection.execute(query.group_by(*keys)).all():
            sums[name].add(status, bucket, tasks, took_s)
            if overall is not None:
                overall.add(status, bucket, tasks, took_s)
    going_on = select(AgentTask.agent, func.count()).where(AgentTask.status == "running").group_by(AgentTask.agent)
    for name, active in connection.execute(going_on if agents is None else going_on.where(AgentTask.agent.in_(agents))):
        sums[name].running = active
        if overall is not None:
            overall.running += active
    return sums


@dataclass(frozen=True, kw_only=True)
class AgentList:
    """Some of the agents that processes registered.

    Attributes:
        agents: each with its statistics, by name.
        is_cut: there are more than these.
    """

    agents: Sequence[tuple[RegisteredAgent, AgentStatistics]]
    is_cut: bool


def listed(
    connection: Connection,
    *,
    type: str | None = None,
    service: str | None = None,
    state: State | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int = MAX_AGENTS,
) -> AgentList:
    """Return agents with their statistics; of those beyond the limit nothing is added up.

    Args:
        connection: to the history.
        type: of this kind only.
        service: those of this service only.
        state: those in this state only.
        since: from when on statistics are, with a time zone; by default from the beginning.
        until: until when, with a time zone; by default until now.
        limit: how many agents, :data:`MAX_AGENTS` at most.

    Example:
        >>> from clew.history.reading import Reader
        >>> with Reader("sqlite:////nowhere/history.db").open() as connection:
        ...     listed(connection, limit=50).agents
        []
    """
    limit = max(1, min(limit, MAX_AGENTS))
    found = registered(connection, type=type, service=service, state=state, limit=limit + 1)
    told = found[:limit]
    sums = _sums(connection, [one.agent for one in told], since, until)
    return AgentList(
        agents=[(one, _figures(one.agent, sums.get(one.agent) or _Sum())) for one in told],
        is_cut=len(found) > limit,
    )


def _figures(agent: str, found: _Sum) -> AgentStatistics:
    known = found.statistics()
    return AgentStatistics(
        agent=agent,
        tasks=known.total,
        ok=known.ok,
        failed=known.failed,
        cancelled=known.cancelled,
        success_rate=known.success_rate,
        average_s=known.average_s,
        p50_s=known.p50_s,
        p95_s=known.p95_s,
        active=known.running,
    )
