"""The tables. Times are aware UTC, durations are seconds; what came from an app is redacted and capped before it gets here."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import JSON, DateTime, Dialect, Float, Index, Integer, String, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeDecorator

from clew.history.ids import ID_LENGTH

MAX_NAME_LENGTH: Final = 255


class UtcDateTime(TypeDecorator[datetime]):
    """A moment: given and returned with a time zone, kept as UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse a time that does not say where it is the time."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        utc = value.astimezone(UTC)
        return utc.replace(tzinfo=None) if dialect.name == "sqlite" else utc

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give it back with its time zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


_Json: Final = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
_Name: Final = String(MAX_NAME_LENGTH)


class Base(DeclarativeBase):
    """What the tables have in common is their metadata."""


class _Recorded:
    """What every record has: who wrote it, and the thread that it belongs to."""

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    service: Mapped[str] = mapped_column(_Name)
    instance: Mapped[str] = mapped_column(_Name)
    trace_id: Mapped[str | None] = mapped_column(String(32))
    span_id: Mapped[str | None] = mapped_column(String(16))
    correlation_id: Mapped[str | None] = mapped_column(_Name)
    recorded_at: Mapped[datetime] = mapped_column(UtcDateTime)


class JobRun(_Recorded, Base):
    """A run of a job: one that is due, goes on, has ended, or did not start."""

    __tablename__ = "job_runs"

    job: Mapped[str] = mapped_column(_Name)
    job_id: Mapped[str | None] = mapped_column(_Name)
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
    user_id: Mapped[str | None] = mapped_column(_Name)
    result: Mapped[Any | None] = mapped_column(_Json)
    error_type: Mapped[str | None] = mapped_column(_Name)
    error_message: Mapped[str | None] = mapped_column(Text)
    traceback: Mapped[str | None] = mapped_column(Text)
    details: Mapped[dict[str, Any] | None] = mapped_column("metadata", _Json)
    host: Mapped[str | None] = mapped_column(_Name)
    pid: Mapped[int | None] = mapped_column(Integer)
    process_started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    process_key: Mapped[str | None] = mapped_column(_Name)
    heartbeat_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    heartbeat_s: Mapped[float | None] = mapped_column(Float)
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

    job: Mapped[str] = mapped_column(_Name, primary_key=True)
    hour: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    status: Mapped[str] = mapped_column(String(16), primary_key=True)
    bucket: Mapped[int] = mapped_column(Integer, primary_key=True)
    runs: Mapped[int] = mapped_column(Integer)
    duration_s: Mapped[float] = mapped_column(Float)

    __table_args__ = (Index("job_run_totals_by_hour", "hour"),)


class JobRunDailyTotal(Base):
    """The same by day (UTC): statistics over months read few rows."""

    __tablename__ = "job_run_daily_totals"

    job: Mapped[str] = mapped_column(_Name, primary_key=True)
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

    instance: Mapped[str] = mapped_column(_Name, primary_key=True)
    scheduler: Mapped[str] = mapped_column(_Name, primary_key=True)
    job_id: Mapped[str] = mapped_column(_Name, primary_key=True)
    job: Mapped[str] = mapped_column(_Name)
    job_key: Mapped[str | None] = mapped_column(String(64))
    service: Mapped[str] = mapped_column(_Name)
    trigger: Mapped[str] = mapped_column(Text)
    next_run_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    pending: Mapped[bool]
    paused: Mapped[bool]
    stored: Mapped[str] = mapped_column(_Name)
    """Where the scheduler keeps it: ``memory``, or what tells one shared store from another."""
    host: Mapped[str] = mapped_column(_Name)
    pid: Mapped[int] = mapped_column(Integer)
    process_started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    process_key: Mapped[str | None] = mapped_column(_Name)
    heartbeat_at: Mapped[datetime] = mapped_column(UtcDateTime)
    heartbeat_s: Mapped[float] = mapped_column(Float)

    __table_args__ = (Index("scheduled_jobs_by_job", "job_id"),)


class JobCommand(Base):
    """What somebody asks a scheduler to do with a job: run it now, pause, resume or remove it."""

    __tablename__ = "job_commands"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    instance: Mapped[str] = mapped_column(_Name)
    scheduler: Mapped[str] = mapped_column(_Name)
    job_id: Mapped[str] = mapped_column(_Name)
    verb: Mapped[str] = mapped_column(String(16))
    requested_by: Mapped[str | None] = mapped_column(_Name)
    requested_at: Mapped[datetime] = mapped_column(UtcDateTime)
    done_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    outcome: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (Index("job_commands_to_do", "instance", postgresql_where=text("done_at IS NULL")),)


class HealthCheck(_Recorded, Base):
    """What a health check found."""

    __tablename__ = "health_checks"

    name: Mapped[str] = mapped_column(_Name)
    status: Mapped[str] = mapped_column(String(16))
    duration_s: Mapped[float] = mapped_column(Float)
    message: Mapped[str | None] = mapped_column(Text)
    details: Mapped[dict[str, Any] | None] = mapped_column(_Json)

    __table_args__ = (Index("health_checks_by_name", "name", "id"),)


RECORDS: Final[dict[str, type[Base]]] = {model.__tablename__: model for model in (JobRun, HealthCheck)}
"""The tables whose rows are written by the recorder, by name."""
