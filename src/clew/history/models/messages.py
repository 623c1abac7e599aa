"""Messages as they were sent and as they were processed, with their totals."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Float, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from clew.history.ids import ID_LENGTH
from clew.history.models.columns import Base, Json, Name, Recorded, UtcDateTime


class QueueMessage(Recorded, Base):
    """A message, or a batch of them, that was sent, or that a consumer worked on: a row for each try."""

    __tablename__ = "queue_messages"

    system: Mapped[str] = mapped_column(String(32))
    queue: Mapped[str] = mapped_column(Name)
    direction: Mapped[str] = mapped_column(String(16))
    """``sent`` or ``received``."""
    status: Mapped[str] = mapped_column(String(16))
    """``sent``, ``cancelled`` (a send that was, meanwhile), ``processed``, ``failed``, ``rejected`` (unreadable, or refused), ``returned``, ``dead_lettered``."""
    type: Mapped[str | None] = mapped_column(Name)
    source: Mapped[str | None] = mapped_column(Name)
    """The service that sent it."""
    user_id: Mapped[str | None] = mapped_column(Name)
    message_id: Mapped[str | None] = mapped_column(Name)
    consumer_group: Mapped[str | None] = mapped_column(Name)
    envelope: Mapped[str | None] = mapped_column(String(16))
    """Who wrote it: ``clew``, or ``plain`` where the producer has no clew."""
    attempt: Mapped[int] = mapped_column(Integer, default=1, server_default="1")
    messages: Mapped[int] = mapped_column(Integer, default=1, server_default="1")
    """How many, in a batch."""
    sent_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    wait_s: Mapped[float | None] = mapped_column(Float)
    duration_s: Mapped[float | None] = mapped_column(Float)
    size_bytes: Mapped[int | None] = mapped_column(Integer)
    payload: Mapped[Any | None] = mapped_column(Json)
    error_type: Mapped[str | None] = mapped_column(Name)
    error_message: Mapped[str | None] = mapped_column(Text)

    __table_args__ = (
        Index("queue_messages_by_queue", "queue", "id"),
        Index("queue_messages_by_status", "status", "id"),
        Index("queue_messages_by_user", "user_id", "id", postgresql_where=text("user_id IS NOT NULL")),
        Index("queue_messages_by_message", "message_id", "id", postgresql_where=text("message_id IS NOT NULL")),
        Index("queue_messages_by_trace", "trace_id", "id"),
        Index("queue_messages_by_correlation", "correlation_id", "id"),
    )


class QueueMessageTotal(Base):
    """How many messages of a queue there were in a minute, an hour and a day: what statistics are read from."""

    __tablename__ = "queue_message_totals"

    grain: Mapped[str] = mapped_column(String(8), primary_key=True)
    """``minute``, ``hour`` or ``day``, all in UTC."""
    since: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    queue: Mapped[str] = mapped_column(Name, primary_key=True)
    direction: Mapped[str] = mapped_column(String(16), primary_key=True)
    status: Mapped[str] = mapped_column(String(16), primary_key=True)
    type: Mapped[str] = mapped_column(Name, primary_key=True)
    source: Mapped[str] = mapped_column(Name, primary_key=True)
    messages: Mapped[int] = mapped_column(Integer)
    waits: Mapped[int] = mapped_column(Integer)
    """How many of them have told how long they waited."""
    wait_s: Mapped[float] = mapped_column(Float)
    duration_s: Mapped[float] = mapped_column(Float)

    __table_args__ = ({"sqlite_with_rowid": False},)


class QueueDepth(Base):
    """What waited in a watched queue when it was looked at last: a row for each queue and group, whoever looked."""

    __tablename__ = "queue_depths"

    id: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    service: Mapped[str] = mapped_column(Name)
    """Who looked."""
    instance: Mapped[str] = mapped_column(Name)
    system: Mapped[str] = mapped_column(String(32))
    queue: Mapped[str] = mapped_column(Name)
    consumer_group: Mapped[str | None] = mapped_column(Name)
    kind: Mapped[str] = mapped_column(Name)
    length: Mapped[int] = mapped_column(BigInteger)
    oldest_age_s: Mapped[float | None] = mapped_column(Float)
    problem: Mapped[str | None] = mapped_column(Name)
    """Why it is not known."""
    observed_at: Mapped[datetime] = mapped_column(UtcDateTime)
