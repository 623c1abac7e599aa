"""What is answered about agents: the same for the HTTP API and for the command line. Times are UTC, durations are seconds."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any, Self

from pydantic import Field

from clew.history.agents import AgentList, AgentStatistics, RegisteredAgent, State
from clew.history.handoffs import Graph
from clew.history.paging import Page, Row
from clew.http.answers import Answer


class AgentStatisticsAnswer(Answer):
    """What is known of tasks that ended."""

    agent: str
    tasks: int = Field(description="Tasks that ended.")
    ok: int = Field(description="Those that completed.")
    failed: int = Field(description="Those that failed, or were lost with their process.")
    cancelled: int
    success_rate: float | None = Field(description="The completed among the completed and the failed, from 0 to 1.")
    average_s: float | None
    p50_s: float | None = Field(description="Half of the tasks took no longer; give or take 5 %.")
    p95_s: float | None = Field(description="95 % of the tasks took no longer; give or take 5 %.")
    active: int = Field(description="Tasks that go on now.")


class PlaceAnswer(Answer):
    """An agent in one process."""

    state: State
    service: str
    instance: str
    host: str | None
    pid: int | None
    version: str | None
    registered_at: datetime
    heartbeat_at: datetime | None
    gone_at: datetime | None = Field(description="When its process ended, or was found to be gone.")
    active: int
    tasks: int = Field(description="Tasks that it began in this process.")
    failures: int
    failures_in_a_row: int
    last_started_at: datetime | None
    last_finished_at: datetime | None
    last_error_type: str | None


class AgentAnswer(Answer):
    """An agent, over all processes that have it."""

    agent: str
    type: str
    version: str | None
    state: State = Field(
        description="failing (3 failures in a row in a process), active, idle, or gone (no process that has it lives)."
    )
    active: int = Field(description="Tasks that it works on now.")
    processes: int = Field(description="Processes that live and have it.")
    last_started_at: datetime | None
    last_finished_at: datetime | None
    last_error_type: str | None
    statistics: AgentStatisticsAnswer


class WholeAgent(AgentAnswer):
    """An agent with what is known of it in each process."""

    places: list[PlaceAnswer] = Field(description="It in each process, the newest first.")

    @classmethod
    def of_agent(cls, agent: RegisteredAgent, statistics: AgentStatistics) -> Self:
        """Return what is answered of an agent."""
        return cls.model_validate({**asdict(agent), "statistics": asdict(statistics)})


class AgentsAnswer(Answer):
    """Agents, by name."""

    agents: list[AgentAnswer]
    is_cut: bool = Field(description="There are more agents than these.")

    @classmethod
    def of(cls, found: AgentList) -> Self:
        """Return what is answered of agents."""
        shown = [
            AgentAnswer.model_validate({**vars(agent), "statistics": vars(figures)}) for agent, figures in found.agents
        ]
        return cls(agents=shown, is_cut=found.is_cut)


class TaskAnswer(Answer):
    """A task of an agent: one that goes on or has ended."""

    id: str
    agent: str
    type: str
    version: str | None
    task_id: str | None = Field(description="What it is about, such as a document's id.")
    user_id: str | None
    status: str = Field(description="running, completed, failed, cancelled or lost (its process died).")
    attempt: int
    handoff_id: str | None = Field(description="The handoff that it picked up.")
    parent_id: str | None = Field(description="The task within which it was begun.")
    started_at: datetime | None
    finished_at: datetime | None
    wait_s: float | None = Field(description="From the handoff until it began.")
    duration_s: float | None
    error_type: str | None
    error_message: str | None = Field(description="Of a task in a list, how it begins.")
    trace_id: str | None
    span_id: str | None
    correlation_id: str | None
    service: str
    instance: str
    host: str | None
    pid: int | None
    heartbeat_at: datetime | None
    recorded_at: datetime

    @classmethod
    def of(cls, row: Row) -> Self:
        """Return what is answered of a task."""
        return cls.model_validate(dict(row))


class WholeTask(TaskAnswer):
    """A task of an agent with all that is kept of it."""

    result: Any = Field(description="What was set as its result; cut where it was large.")
    metadata: Any = Field(description="What the task was started with, or set; cut where it was large.")
    traceback: str | None = Field(description="Cut where it was large.")


class TasksAnswer(Answer):
    """Some tasks, newest first."""

    tasks: list[TaskAnswer]
    next: str | None = Field(description="Give it as `after` for older tasks; null where there are none.")
    previous: str | None = Field(description="Give it as `before` for newer tasks; null on the first page.")
    limit: int
    searched_to: datetime | None = Field(
        description="How far back was looked, where that had an end before the page was full: go on with `next`."
    )

    @classmethod
    def of(cls, page: Page, *, limit: int) -> Self:
        """Return what is answered of a page."""
        tasks = [TaskAnswer.of(row) for row in page.rows]
        return cls(tasks=tasks, next=page.next, previous=page.previous, limit=limit, searched_to=page.searched_to)


class HandoffAnswer(Answer):
    """A task that one agent handed to another."""

    id: str
    source: str = Field(description="Who handed over; empty where no agent did.")
    target: str
    mode: str = Field(description="return_to_caller or pass_control.")
    status: str = Field(
        description="waiting, accepted, completed, failed, cancelled, unclaimed (nobody picked it up in time) or "
        "lost (the process that had it died)."
    )
    reason: str | None
    task_id: str | None
    user_id: str | None
    depth: int = Field(description="How many handoffs led here, this one included.")
    chain: list[str] | None = Field(description="The agents that it went through, the first one first.")
    is_loop: bool = Field(description="The target had it already.")
    is_too_deep: bool = Field(description="It went through more agents than CLEW_HANDOFF_MAX_DEPTH.")
    parent_id: str | None = Field(description="The task within which it was handed over.")
    handed_at: datetime
    claim_by: datetime | None
    accepted_at: datetime | None
    accepted_by: str | None = Field(description="The instance that picked it up.")
    finished_at: datetime | None
    wait_s: float | None
    duration_s: float | None
    error_type: str | None
    error_message: str | None = Field(description="Of a handoff in a list, how it begins.")
    trace_id: str | None
    span_id: str | None
    correlation_id: str | None
    service: str
    instance: str
    recorded_at: datetime

    @classmethod
    def of(cls, row: Row) -> Self:
        """Return what is answered of a handoff."""
        return cls.model_validate(dict(row))


class WholeHandoff(HandoffAnswer):
    """A handoff with all that is kept of it."""

    summary: Any = Field(description="What was said about what was handed over; cut where it was large.")
    carrier: dict[str, str] | None = Field(description="What continues its thread, also after a restart.")


class HandoffsAnswer(Answer):
    """Some handoffs, newest first."""

    handoffs: list[HandoffAnswer]
    next: str | None = Field(description="Give it as `after` for older handoffs; null where there are none.")
    previous: str | None = Field(description="Give it as `before` for newer handoffs; null on the first page.")
    limit: int
    searched_to: datetime | None = Field(
        description="How far back was looked, where that had an end before the page was full: go on with `next`."
    )

    @classmethod
    def of(cls, page: Page, *, limit: int) -> Self:
        """Return what is answered of a page."""
        handoffs = [HandoffAnswer.of(row) for row in page.rows]
        return cls(handoffs=handoffs, next=page.next, previous=page.previous, limit=limit, searched_to=page.searched_to)


class EdgeAnswer(Answer):
    """What one agent handed to another."""

    source: str = Field(description="Who handed over; empty where no agent did.")
    target: str
    handoffs: int
    failing: int = Field(description="Those that failed, were lost, or were picked up by nobody.")
    open: int = Field(description="Those that wait or are worked on.")
    average_wait_s: float | None = Field(description="Until they were picked up.")
    average_s: float | None = Field(description="Until they were over.")


class GraphAnswer(Answer):
    """Who hands to whom."""

    since: datetime | None = Field(serialization_alias="from", description="The whole hour that it begins with.")
    until: datetime | None = Field(serialization_alias="to", description="The whole hour that it ends with.")
    agents: list[AgentStatisticsAnswer] = Field(description="By name.")
    edges: list[EdgeAnswer] = Field(description="By source and target.")
    is_cut: bool = Field(description="There is more than this.")

    @classmethod
    def of(cls, graph: Graph) -> Self:
        """Return what is answered of a graph."""
        return cls.model_validate(asdict(graph))
