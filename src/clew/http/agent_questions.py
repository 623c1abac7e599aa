"""What may be asked about agents, and what is allowed: the same for the HTTP API and for the command line."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from clew.history.agent_tasks import TaskFilter, TaskStatus
from clew.history.agents import MAX_AGENTS, State
from clew.history.handoffs import HandoffFilter, HandoffMode, HandoffStatus
from clew.history.ids import ID_LENGTH
from clew.http.question import PageQuestion, Text, TimeQuestion, TraceId

RecordId = Annotated[str, Field(pattern=rf"^[0-9a-fA-F]{{{ID_LENGTH}}}$"), AfterValidator(str.lower)]


class AgentsQuestion(TimeQuestion):
    """Which agents are asked for; the time is that of their statistics."""

    type: Text | None = Field(default=None, description="Agents of this kind.")
    service: Text | None = Field(default=None, description="Those of this service.")
    state: State | None = Field(default=None, description="Those in this state.")
    limit: int = Field(default=MAX_AGENTS, ge=1, description=f"How many agents; not more than {MAX_AGENTS}.")


class AgentQuestion(TimeQuestion):
    """Of which time the statistics of an agent are asked for."""


class TasksQuestion(PageQuestion):
    """Which tasks are asked for."""

    agent: Text | None = Field(default=None, description="Tasks of this agent.")
    type: Text | None = Field(default=None, description="Tasks of agents of this kind.")
    status: TaskStatus | None = Field(default=None, description="Tasks with this status.")
    task: Text | None = Field(default=None, description="Tasks that are about this, such as a document's id.")
    user: Text | None = Field(default=None, description="Tasks that are done for this user.")
    handoff: RecordId | None = Field(default=None, description="Tasks that picked up this handoff, by its id.")
    error: Text | None = Field(
        default=None, description="Words that the error's type or message has, each of them, in any order."
    )
    trace_id: TraceId | None = Field(default=None, description="Tasks of this trace: 32 hexadecimal digits.")
    correlation_id: Text | None = Field(default=None, description="Tasks with this correlation id.")

    def filter(self) -> TaskFilter:
        """Return it as the history takes it."""
        return TaskFilter(
            agent=self.agent,
            type=self.type,
            status=self.status,
            task_id=self.task,
            user=self.user,
            handoff_id=self.handoff,
            since=self.begin(),
            until=self.until,
            error=self.error,
            trace_id=self.trace_id,
            correlation_id=self.correlation_id,
        )


class HandoffsQuestion(PageQuestion):
    """Which handoffs are asked for."""

    source: Text | None = Field(default=None, description="What this agent handed over.")
    target: Text | None = Field(default=None, description="What was handed to this agent.")
    status: HandoffStatus | None = Field(default=None, description="Handoffs with this status.")
    mode: HandoffMode | None = Field(default=None, description="Whether the result comes back.")
    problem: Literal["loop", "too_deep"] | None = Field(
        default=None, description="Those to an agent that had the task already, or through too many agents."
    )
    task: Text | None = Field(default=None, description="Handoffs of this, such as a document's id.")
    user: Text | None = Field(default=None, description="Handoffs for this user.")
    trace_id: TraceId | None = Field(default=None, description="Handoffs of this trace: 32 hexadecimal digits.")
    correlation_id: Text | None = Field(default=None, description="Handoffs with this correlation id.")

    def filter(self) -> HandoffFilter:
        """Return it as the history takes it."""
        return HandoffFilter(
            source=self.source,
            target=self.target,
            status=self.status,
            mode=self.mode,
            problem=self.problem,
            task_id=self.task,
            user=self.user,
            since=self.begin(),
            until=self.until,
            trace_id=self.trace_id,
            correlation_id=self.correlation_id,
        )


class GraphQuestion(TimeQuestion):
    """Of which handoffs a graph is asked for."""

    agent: Text | None = Field(default=None, description="What this agent handed over and took over only.")
    format: Literal["json", "svg"] | None = Field(
        default=None, description="`svg` is a picture; by default what the Accept header asks for, and else JSON."
    )
