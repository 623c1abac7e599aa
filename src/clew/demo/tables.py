"""The tables that the demo keeps its documents in."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from sqlalchemy import Column, DateTime, Dialect, Float, ForeignKey, Integer, MetaData, String, Table, Text
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time, also in databases that keep no time zone, such as SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive times and turn others into UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"the time {value.isoformat()} has no time zone: give an aware datetime, such as UTC")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the time as aware UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


METADATA: Final = MetaData()

DOCUMENTS: Final = Table(
    "documents",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("title", String(300), nullable=False),
    Column("text", Text, nullable=False),
    Column("size_bytes", Integer, nullable=False),
    Column("status", String(16), nullable=False, index=True),
    Column("summary", Text, nullable=False, default=""),
    Column("error", Text, nullable=False, default=""),
    Column("trace_id", String(32), nullable=False, default=""),
    Column("accepted_at", UtcDateTime, nullable=False, index=True),
    Column("finished_at", UtcDateTime),
)
DOCUMENT_TOPICS: Final = Table(
    "document_topics",
    METADATA,
    Column("document_id", ForeignKey("documents.id", ondelete="CASCADE"), primary_key=True),
    Column("name", String(200), primary_key=True),
    Column("weight", Float, nullable=False),
)
EXPORTS: Final = Table(
    "exports",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("status", String(16), nullable=False),
    Column("documents", Integer, nullable=False, default=0),
    Column("error", Text, nullable=False, default=""),
    Column("trace_id", String(32), nullable=False, default=""),
    Column("requested_at", UtcDateTime, nullable=False, index=True),
    Column("finished_at", UtcDateTime),
)
DIGESTS: Final = Table(
    "digests",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("text", Text, nullable=False),
    Column("documents", Integer, nullable=False),
    Column("published_at", UtcDateTime, nullable=False, index=True),
)
