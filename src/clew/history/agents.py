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
from clew.history.totals import Total, hour_of, stretches, until_hour

State = Literal["active", "idle", "failing", "gone"]

FAILURES: Final = 3
"""How many failures in a row make an agent failing."""
MAX_AGENTS: Final = 1_000
"""How many agents are told of."""
_LATE_S: Final = 5.0
_TABLE: Final[Table] = Agent.__table__  # type: ignore[assignment]
_ORDER: Final = ("failing", "active", "idle", "gone")


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
    connection: Connection, *, agent: str | None = None, type: str | None = None, service: str | None = None
) -> list[RegisteredAgent]:
    """Return the agents that processes registered, by name, in the state that they are in now.

    Args:
        connection: to the history.
        agent: this one only.
        type: of this kind only.
        service: those of this service only.

    Example:
        >>> from clew.history.reading import Reader
        >>> with Reader("sqlite:////nowhere/history.db").open() as connection:
        ...     registered(connection)
        []
    """
    query = select(_TABLE).order_by(_TABLE.c.agent, _TABLE.c.registered_at.desc())
    for column, value in ((_TABLE.c.agent, agent), (_TABLE.c.type, type), (_TABLE.c.service, service)):
        query = query if value is None else query.where(column == value)
    alive: dict[tuple[Any, ...], bool] = {}
    found: defaultdict[str, list[Any]] = defaultdict(list)
    now = clock.utc_now()
    for row in connection.execute(query):
        process = (row.pid, row.process_key, row.gone_at, row.heartbeat_at)
        if process not in alive:
            alive[process] = _lives(row, now)
        found[row.agent].append((row, _state(row, lives=alive[process])))
    return [_together(name, rows) for name, rows in found.items()]


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
        state=min((place.state for place in places), key=_ORDER.index),
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
    agent: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    limit: int = MAX_AGENTS,
) -> AgentReport:
    """Return the statistics of agents: of tasks that ended within a time, which begins and ends with whole hours.

    Args:
        connection: to the history.
        agent: of this one only.
        since: from then on, with a time zone; by default from the beginning.
        until: until then, with a time zone; by default until now.
        limit: how many agents, :data:`MAX_AGENTS` at most.

    Example:
        >>> from clew.history.reading import Reader
        >>> with Reader("sqlite:////nowhere/history.db").open() as connection:
        ...     statistics(connection).overall.tasks
        0
    """
    model = AgentTaskTotal
    sums: defaultdict[str, _Sum] = defaultdict(_Sum)
    overall = _Sum()
    keys = (model.agent, model.status, model.bucket)
    for grain, begin, end in stretches(since, until):
        query = select(*keys, func.sum(model.tasks), func.sum(model.duration_s)).where(model.grain == grain)
        query = query.where(model.since >= begin) if begin is not None else query
        query = query.where(model.since < end) if end is not None else query
        query = query if agent is None else query.where(model.agent == agent)
        for name, status, bucket, tasks, duration_s in connection.execute(query.group_by(*keys)):
            total = Total(job=name, status=status, bucket=bucket, runs=int(tasks), duration_s=float(duration_s))
            sums[name].add(total)
            overall.add(total)
    going_on = select(AgentTask.agent, func.count()).where(AgentTask.status == "running").group_by(AgentTask.agent)
    for name, active in connection.execute(going_on if agent is None else going_on.where(AgentTask.agent == agent)):
        sums[name].running = active
        overall.running += active
    names = sorted(sums)
    told = names[: max(1, min(limit, MAX_AGENTS))]
    return AgentReport(
        since=hour_of(since) if since is not None else None,
        until=until_hour(until) if until is not None else None,
        overall=_figures("", overall),
        agents=[_figures(name, sums[name]) for name in told],
        is_cut=len(names) > len(told),
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
