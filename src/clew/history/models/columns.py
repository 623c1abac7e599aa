"""What the tables are made of. Times are aware UTC, durations are seconds; what came from an app is redacted and capped before."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from sqlalchemy import JSON, DateTime, Dialect, Float, Integer, String
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


Json: Final = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
Name: Final = String(MAX_NAME_LENGTH)


class Base(DeclarativeBase):
    """What the tables have in common is their metadata."""


class Recorded:
    """What every record has: who wrote it, and the thread that it belongs to."""

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    service: Mapped[str] = mapped_column(Name)
    instance: Mapped[str] = mapped_column(Name)
    trace_id: Mapped[str | None] = mapped_column(String(32))
    span_id: Mapped[str | None] = mapped_column(String(16))
    correlation_id: Mapped[str | None] = mapped_column(Name)
    recorded_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Lived:
    """What a record of work has that goes on in a process: which one, and its last sign of life."""

    host: Mapped[str | None] = mapped_column(Name)
    pid: Mapped[int | None] = mapped_column(Integer)
    process_started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    process_key: Mapped[str | None] = mapped_column(Name)
    heartbeat_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    heartbeat_s: Mapped[float | None] = mapped_column(Float)
