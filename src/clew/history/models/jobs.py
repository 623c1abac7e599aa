"""Runs of jobs with their totals, and what schedulers have and are asked to do."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Float, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from clew.history.ids import ID_LENGTH
from clew.history.models.columns import Base, Json, Lived, Name, Recorded, UtcDateTime


class JobRun(Recorded, Lived, Base):
    """A run of a job: one that is due, goes on, has ended, or did not start."""

    __tablename__ = "job_runs"

    job: Mapped[str] = mapped_column(Name)
    job_id: Mapped[str | None] = mapped_column(Name)
    job_key: Mapped[str | None] = mapped_column(String(64))
    """What the same job has in every process, also where its id is made up in each."""
    source: Mapped[str] = mapped_column(String(32))
    trigger: Mapped[str | None] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16))
    scheduled_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    duration_s: Mapped[float | None] = mapped_column(Float)
    lateness_s: Mapped[float | None] = mapped_column(Float)
    attempt: Mapped[int] = mapped_column(Integer, default=1, server_default="1")
    progress: Mapped[float | None] = mapped_column(Float)
    user_id: Mapped[str | None] = mapped_column(Name)
    result: Mapped[Any | None] = mapped_column(Json)
    error_type: Mapped[str | None] = mapped_column(Name)
    error_message: Mapped[str | None] = mapped_column(Text)
    traceback: Mapped[str | None] = mapped_column(Text)
    details: Mapped[dict[str, Any] | None] = mapped_column("metadata", Json)
    duplicate_of: Mapped[str | None] = mapped_column(String(ID_LENGTH))

    __table_args__ = (
        Index("job_runs_by_job", "job", "id"),
        Index("job_runs_by_job_status", "job", "status", "id"),
        Index("job_runs_by_status", "status", "id"),
        Index("job_runs_by_user", "user_id", "id", postgresql_where=text("user_id IS NOT NULL")),
        Index("job_runs_by_due", "job", "scheduled_at"),
        Index("job_runs_by_trace", "trace_id", "id"),
        Index("job_runs_by_correlation", "correlation_id", "id"),
    )


class JobRunTotal(Base):
    """How many runs of a job ended in an hour, by status and by how long they took: what statistics are read from."""

    __tablename__ = "job_run_totals"

    job: Mapped[str] = mapped_column(Name, primary_key=True)
    hour: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    status: Mapped[str] = mapped_column(String(16), primary_key=True)
    bucket: Mapped[int] = mapped_column(Integer, primary_key=True)
    runs: Mapped[int] = mapped_column(Integer)
    duration_s: Mapped[float] = mapped_column(Float)

    __table_args__ = (Index("job_run_totals_by_hour", "hour"),)


class JobRunDailyTotal(Base):
    """The same by day (UTC): statistics over months read few rows."""

    __tablename__ = "job_run_daily_totals"

    job: Mapped[str] = mapped_column(Name, primary_key=True)
    status: Mapped[str] = mapped_column(String(16), primary_key=True)
    bucket: Mapped[int] = mapped_column(Integer, primary_key=True)
    day: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    runs: Mapped[int] = mapped_column(Integer)
    duration_s: Mapped[float] = mapped_column(Float)

    # In the order in which they are added up
    __table_args__ = ({"sqlite_with_rowid": False},)


class ScheduledJob(Base):
    """A job that a scheduler has, as that scheduler's process last told."""

    __tablename__ = "scheduled_jobs"

    instance: Mapped[str] = mapped_column(Name, primary_key=True)
    scheduler: Mapped[str] = mapped_column(Name, primary_key=True)
    job_id: Mapped[str] = mapped_column(Name, primary_key=True)
    job: Mapped[str] = mapped_column(Name)
    job_key: Mapped[str | None] = mapped_column(String(64))
    service: Mapped[str] = mapped_column(Name)
    trigger: Mapped[str] = mapped_column(Text)
    next_run_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    pending: Mapped[bool]
    paused: Mapped[bool]
    stored: Mapped[str] = mapped_column(Name)
    """Where the scheduler keeps it: ``memory``, or what tells one shared store from another."""
    host: Mapped[str] = mapped_column(Name)
    pid: Mapped[int] = mapped_column(Integer)
    process_started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    process_key: Mapped[str | None] = mapped_column(Name)
    heartbeat_at: Mapped[datetime] = mapped_column(UtcDateTime)
    heartbeat_s: Mapped[float] = mapped_column(Float)

    __table_args__ = (Index("scheduled_jobs_by_job", "job_id"),)


class JobCommand(Base):
    """What somebody asks a scheduler to do with a job: run it now, pause, resume or remove it."""

    __tablename__ = "job_commands"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    instance: Mapped[str] = mapped_column(Name)
    scheduler: Mapped[str] = mapped_column(Name)
    job_id: Mapped[str] = mapped_column(Name)
    verb: Mapped[str] = mapped_column(String(16))
    requested_by: Mapped[str | None] = mapped_column(Name)
    requested_at: Mapped[datetime] = mapped_column(UtcDateTime)
    done_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    outcome: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (Index("job_commands_to_do", "instance", postgresql_where=text("done_at IS NULL")),)
