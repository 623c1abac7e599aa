"""Handoffs, newest first, page by page, and the graph that they make: who hands to whom, how often, and how that goes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import Connection, Table, func, select

from clew.history.agents import MAX_AGENTS, AgentStatistics, statistics
from clew.history.models import Handoff, HandoffTotal
from clew.history.paging import DEFAULT_LIMIT, Conditions, Page, Shelf, equal
from clew.history.totals import hour_of, stretches, until_hour

HandoffStatus = Literal["waiting", "accepted", "completed", "failed", "cancelled", "unclaimed", "lost"]
HandoffMode = Literal["return_to_caller", "pass_control"]

MAX_EDGES: Final = 1_000
"""How many edges a graph has; those that are used most."""

_FAILING: Final = ("failed", "lost", "unclaimed")
_OVER: Final = ("completed", "failed", "cancelled")
_TABLE: Final[Table] = Handoff.__table__  # type: ignore[assignment]
HANDOFFS: Final = Shelf(table=_TABLE, large=frozenset({"summary", "carrier"}))
"""All handoffs."""


@dataclass(frozen=True, kw_only=True)
class HandoffFilter:
    """Which handoffs are wanted; what is ``None`` does not matter.

    Attributes:
        source: who handed over.
        target: to whom.
        status: the handoff's status.
        mode: whether the result comes back.
        task_id: what it is about.
        user: for whom it is done.
        problem: ``loop`` or ``too_deep``.
        since: recorded at this time or later, with a time zone.
        until: recorded before this time, with a time zone.
        trace_id: the trace it belongs to.
        correlation_id: the correlation id it carries.
    """

    source: str | None = None
    target: str | None = None
    status: HandoffStatus | None = None
    mode: HandoffMode | None = None
    task_id: str | None = None
    user: str | None = None
    problem: Literal["loop", "too_deep"] | None = None
    since: datetime | None = None
    until: datetime | None = None
    trace_id: str | None = None
    correlation_id: str | None = None


def page(
    connection: Connection,
    wanted: HandoffFilter | None = None,
    *,
    after: str | None = None,
    before: str | None = None,
    limit: int = DEFAULT_LIMIT,
) -> Page:
    """Return handoffs, newest first: see :meth:`clew.history.paging.Shelf.page`.

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
        ...     page(connection, HandoffFilter(status="unclaimed")).rows
        []
    """
    wanted = wanted or HandoffFilter()
    conditions = Conditions()
    conditions.within(_TABLE, wanted.since, wanted.until)
    conditions.exactly(
        equal(_TABLE.c.trace_id, wanted.trace_id),
        equal(_TABLE.c.correlation_id, wanted.correlation_id),
        equal(_TABLE.c.task_id, wanted.task_id),
        equal(_TABLE.c.user_id, wanted.user),
        equal(_TABLE.c.source, wanted.source),
        equal(_TABLE.c.target, wanted.target),
        equal(_TABLE.c.status, wanted.status),
    )
    if wanted.mode is not None:
        conditions.scanned.append(_TABLE.c.mode == wanted.mode)
    if wanted.problem is not None:
        conditions.scanned.append((_TABLE.c.is_loop if wanted.problem == "loop" else _TABLE.c.is_too_deep).is_(True))
    return HANDOFFS.page(connection, conditions, after=after, before=before, limit=limit)


@dataclass(frozen=True, kw_only=True)
class Edge:
    """What one agent handed to another.

    Attributes:
        source: who handed over; ``""`` for what was handed over by no agent.
        target: to whom.
        handoffs: how many.
        failing: those that failed, were lost, or were picked up by nobody.
        open: those that wait or are worked on.
        average_wait_s: until they were picked up.
        average_s: until they were over.
    """

    source: str
    target: str
    handoffs: int
    failing: int
    open: int
    average_wait_s: float | None
    average_s: float | None


@dataclass(frozen=True, kw_only=True)
class Graph:
    """Who hands to whom.

    Attributes:
        since: from when on, a whole hour; ``None`` for the beginning.
        until: until when, a whole hour; ``None`` for now.
        agents: those that handed over, took over or worked in that time, by name.
        edges: what they handed over, by source and target.
        is_cut: there are more than these.
    """

    since: datetime | None
    until: datetime | None
    agents: Sequence[AgentStatistics]
    edges: Sequence[Edge]
    is_cut: bool = False


@dataclass(slots=True)
class _Sum:
    by_status: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    waits: int = 0
    wait_s: float = 0.0
    duration_s: float = 0.0

    def edge(self, source: str, target: str) -> Edge:
        over = sum(self.by_status[status] for status in _OVER)
        return Edge(
            source=source,
            target=target,
            handoffs=sum(self.by_status.values()),
            failing=sum(self.by_status[status] for status in _FAILING),
            open=self.by_status["waiting"] + self.by_status["accepted"],
            average_wait_s=max(0.0, self.wait_s) / self.waits if self.waits > 0 else None,
            average_s=max(0.0, self.duration_s) / over if over > 0 else None,
        )


def graph(
    connection: Connection,
    *,
    agent: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Graph:
    """Return who handed to whom within a time, which begins and ends with whole hours.

    Args:
        connection: to the history.
        agent: what this one handed over and took over only.
        since: from then on, with a time zone; by default from the beginning.
        until: until then, with a time zone; by default until now.

    Example:
        >>> from clew.history.reading import Reader
        >>> with Reader("sqlite:////nowhere/history.db").open() as connection:
        ...     graph(connection).edges
        []
    """
    sums: defaultdict[tuple[str, str], _Sum] = defaultdict(_Sum)
    model = HandoffTotal
    for grain, begin, end in stretches(since, until):
        keys = (model.source, model.target, model.status)
        numbers = [func.sum(column) for column in (model.handoffs, model.waits, model.wait_s, model.duration_s)]
        query: Any = select(*keys, *numbers).where(model.grain == grain).group_by(*keys)
        query = query.where(model.since >= begin) if begin is not None else query
        query = query.where(model.since < end) if end is not None else query
        if agent is not None:
            query = query.where((model.source == agent) | (model.target == agent))
        for source, target, status, handoffs, waits, wait_s, duration_s in connection.execute(query):
            one = sums[source, target]
            one.by_status[status] += int(handoffs)
            one.waits += int(waits)
            one.wait_s += float(wait_s)
            one.duration_s += float(duration_s)
    edges = [found for key in sums if (found := sums[key].edge(source=key[0], target=key[1])).handoffs > 0]
    edges.sort(key=lambda edge: (-edge.handoffs, edge.source, edge.target))
    shown = sorted(edges[:MAX_EDGES], key=lambda edge: (edge.source, edge.target))
    known = statistics(connection, agents=None if agent is None else [agent], since=since, until=until)
    by_name: dict[str, Any] = {one.agent: one for one in known.agents}
    names = {name for edge in shown for name in (edge.source, edge.target)} | set(by_name)
    nodes = [by_name.get(name) or AgentStatistics(agent=name) for name in sorted(names) if name]
    return Graph(
        since=hour_of(since) if since is not None else None,
        until=until_hour(until) if until is not None else None,
        agents=nodes,
        edges=shown,
        is_cut=len(edges) > MAX_EDGES or known.is_cut or len(nodes) > 2 * MAX_AGENTS,
    )
