"""Agents, the tasks that they work on, and the handoffs between them, with their totals."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Float, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from clew.history.ids import ID_LENGTH
from clew.history.models.columns import Base, Json, Lived, Name, Recorded, UtcDateTime


class Agent(Lived, Base):
    """An agent as a process registered it, with what that process saw of it."""

    __tablename__ = "agents"

    agent: Mapped[str] = mapped_column(Name, primary_key=True)
    instance: Mapped[str] = mapped_column(Name, primary_key=True)
    process: Mapped[str] = mapped_column(String(32), primary_key=True)
    """The process's number: instances may be called the same by whoever configures them."""
    type: Mapped[str] = mapped_column(Name)
    version: Mapped[str | None] = mapped_column(Name)
    service: Mapped[str] = mapped_column(Name)
    registered_at: Mapped[datetime] = mapped_column(UtcDateTime)
    active: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    tasks: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    failures: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    failures_in_a_row: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    last_started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_error_type: Mapped[str | None] = mapped_column(Name)
    gone_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """When the process ended, or was found to be gone."""


class AgentTask(Recorded, Lived, Base):
    """A task that an agent works on, or has worked on."""

    __tablename__ = "agent_tasks"

    agent: Mapped[str] = mapped_column(Name)
    type: Mapped[str] = mapped_column(Name)
    version: Mapped[str | None] = mapped_column(Name)
    task_id: Mapped[str | None] = mapped_column(Name)
    """What the task is about, such as a document."""
    user_id: Mapped[str | None] = mapped_column(Name)
    status: Mapped[str] = mapped_column(String(16))
    """``running``, ``completed``, ``failed``, ``cancelled`` or ``lost``."""
    attempt: Mapped[int] = mapped_column(Integer, default=1, server_default="1")
    handoff_id: Mapped[str | None] = mapped_column(String(ID_LENGTH))
    parent_id: Mapped[str | None] = mapped_column(String(ID_LENGTH))
    """The task within which it was begun."""
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    wait_s: Mapped[float | None] = mapped_column(Float)
    duration_s: Mapped[float | None] = mapped_column(Float)
    result: Mapped[Any | None] = mapped_column(Json)
    error_type: Mapped[str | None] = mapped_column(Name)
    error_message: Mapped[str | None] = mapped_column(Text)
    traceback: Mapped[str | None] = mapped_column(Text)
    details: Mapped[dict[str, Any] | None] = mapped_column("metadata", Json)

    __table_args__ = (
        Index("agent_tasks_by_agent", "agent", "id"),
        Index("agent_tasks_by_status", "status", "id"),
        Index("agent_tasks_by_task", "task_id", "id", postgresql_where=text("task_id IS NOT NULL")),
        Index("agent_tasks_by_user", "user_id", "id", postgresql_where=text("user_id IS NOT NULL")),
        Index("agent_tasks_by_trace", "trace_id", "id"),
        Index("agent_tasks_by_correlation", "correlation_id", "id"),
    )


class AgentTaskTotal(Base):
    """How many tasks of an agent ended in an hour and in a day, by status and by how long they took."""

    __tablename__ = "agent_task_totals"

    grain: Mapped[str] = mapped_column(String(8), primary_key=True)
    """``hour`` or ``day``, both in UTC."""
    since: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    agent: Mapped[str] = mapped_column(Name, primary_key=True)
    type: Mapped[str] = mapped_column(Name, primary_key=True)
    status: Mapped[str] = mapped_column(String(16), primary_key=True)
    bucket: Mapped[int] = mapped_column(Integer, primary_key=True)
    tasks: Mapped[int] = mapped_column(Integer)
    duration_s: Mapped[float] = mapped_column(Float)

    __table_args__ = ({"sqlite_with_rowid": False},)


_WAITED_FOR = text("finished_at IS NULL AND process_key IS NOT NULL")
_UNCLAIMED = text("finished_at IS NULL AND accepted_at IS NULL AND claim_by IS NOT NULL")


class Handoff(Recorded, Lived, Base):
    """A task that one agent hands to another; one that is to come back lives in the process that waits for it."""

    __tablename__ = "handoffs"

    source: Mapped[str] = mapped_column(Name)
    target: Mapped[str] = mapped_column(Name)
    mode: Mapped[str] = mapped_column(String(32))
    status: Mapped[str] = mapped_column(String(16))
    """``waiting``, ``accepted``, ``completed``, ``failed``, ``cancelled``, ``unclaimed`` or ``lost``."""
    reason: Mapped[str | None] = mapped_column(Text)
    task_id: Mapped[str | None] = mapped_column(Name)
    user_id: Mapped[str | None] = mapped_column(Name)
    summary: Mapped[Any | None] = mapped_column(Json)
    """What is said about what was handed over, never all of it."""
    depth: Mapped[int] = mapped_column(Integer)
    """How many handoffs led here, this one included."""
    chain: Mapped[list[str] | None] = mapped_column(Json)
    """The agents that it went through, the first one first."""
    is_loop: Mapped[bool]
    """The target had it already."""
    is_too_deep: Mapped[bool]
    """It went through more agents than the settings expect."""
    parent_id: Mapped[str | None] = mapped_column(String(ID_LENGTH))
    """The task within which it was handed over."""
    carrier: Mapped[dict[str, str] | None] = mapped_column(Json)
    """What continues its thread, also after a restart."""
    handed_at: Mapped[datetime] = mapped_column(UtcDateTime)
    claim_by: Mapped[datetime | None] = mapped_column(UtcDateTime)
    """When nobody has picked it up by then, it is unclaimed."""
    accepted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    accepted_by: Mapped[str | None] = mapped_column(Name)
    """The instance that picked it up."""
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    wait_s: Mapped[float | None] = mapped_column(Float)
    duration_s: Mapped[float | None] = mapped_column(Float)
    error_type: Mapped[str | None] = mapped_column(Name)
    error_message: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        Index("handoffs_by_source", "source", "id"),
        Index("handoffs_by_target", "target", "id"),
        Index("handoffs_by_status", "status", "id"),
        Index("handoffs_by_task", "task_id", "id", postgresql_where=text("task_id IS NOT NULL")),
        Index("handoffs_by_user", "user_id", "id", postgresql_where=text("user_id IS NOT NULL")),
        Index("handoffs_by_trace", "trace_id", "id"),
        Index("handoffs_by_correlation", "correlation_id", "id"),
        Index("handoffs_going_on", "id", sqlite_where=_WAITED_FOR, postgresql_where=_WAITED_FOR),
        Index("handoffs_to_be_claimed", "claim_by", sqlite_where=_UNCLAIMED, postgresql_where=_UNCLAIMED),
    )


class HandoffTotal(Base):
    """How many handoffs between two agents ended in an hour and in a day: what the graph is drawn from."""

    __tablename__ = "handoff_totals"

    grain: Mapped[str] = mapped_column(String(8), primary_key=True)
    """``hour`` or ``day``, both in UTC."""
    since: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    source: Mapped[str] = mapped_column(Name, primary_key=True)
    target: Mapped[str] = mapped_column(Name, primary_key=True)
    mode: Mapped[str] = mapped_column(String(32), primary_key=True)
    status: Mapped[str] = mapped_column(String(16), primary_key=True)
    handoffs: Mapped[int] = mapped_column(Integer)
    waits: Mapped[int] = mapped_column(Integer)
    wait_s: Mapped[float] = mapped_column(Float)
    duration_s: Mapped[float] = mapped_column(Float)

    __table_args__ = ({"sqlite_with_rowid": False},)
