"""Requests to language models, with the totals of what they used."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Float, Index, Integer, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from clew.history.models.columns import Base, Json, Name, Recorded, UtcDateTime


class LlmCall(Recorded, Base):
    """A request to a language model."""

    __tablename__ = "llm_calls"

    provider: Mapped[str] = mapped_column(Name)
    model: Mapped[str] = mapped_column(Name)
    """The one that was asked for."""
    response_model: Mapped[str | None] = mapped_column(Name)
    operation: Mapped[str] = mapped_column(String(64))
    agent: Mapped[str | None] = mapped_column(Name)
    user_id: Mapped[str | None] = mapped_column(Name)
    status: Mapped[str] = mapped_column(String(16))
    """``completed``, ``failed`` or ``cancelled``."""
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    duration_s: Mapped[float | None] = mapped_column(Float)
    first_token_s: Mapped[float | None] = mapped_column(Float)
    retries: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    is_cached: Mapped[bool] = mapped_column(default=False)
    """It was answered without the provider."""
    input_tokens: Mapped[int | None] = mapped_column(Integer)
    output_tokens: Mapped[int | None] = mapped_column(Integer)
    cache_read_tokens: Mapped[int | None] = mapped_column(Integer)
    """Of the input, what the provider had already."""
    cache_write_tokens: Mapped[int | None] = mapped_column(Integer)
    reasoning_tokens: Mapped[int | None] = mapped_column(Integer)
    """Of the output, what nobody reads."""
    cost_usd: Mapped[float | None] = mapped_column(Float)
    error_type: Mapped[str | None] = mapped_column(Name)
    error_message: Mapped[str | None] = mapped_column(Text)
    prompt: Mapped[Any | None] = mapped_column(Json)
    completion: Mapped[Any | None] = mapped_column(Json)

    __table_args__ = (
        Index("llm_calls_by_model", "model", "id"),
        Index("llm_calls_by_agent", "agent", "id", postgresql_where=text("agent IS NOT NULL")),
        Index("llm_calls_by_user", "user_id", "id", postgresql_where=text("user_id IS NOT NULL")),
        Index("llm_calls_by_status", "status", "id"),
        Index("llm_calls_by_trace", "trace_id", "id"),
        Index("llm_calls_by_correlation", "correlation_id", "id"),
    )


class LlmUsageTotal(Base):
    """What was used in an hour and in a day, by whom, of which model."""

    __tablename__ = "llm_usage_totals"

    grain: Mapped[str] = mapped_column(String(8), primary_key=True)
    """``hour`` or ``day``, both in UTC."""
    since: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    service: Mapped[str] = mapped_column(Name, primary_key=True)
    provider: Mapped[str] = mapped_column(Name, primary_key=True)
    model: Mapped[str] = mapped_column(Name, primary_key=True)
    agent: Mapped[str] = mapped_column(Name, primary_key=True)
    user_id: Mapped[str] = mapped_column(Name, primary_key=True)
    status: Mapped[str] = mapped_column(String(16), primary_key=True)
    calls: Mapped[int] = mapped_column(Integer)
    cached: Mapped[int] = mapped_column(Integer)
    """Calls that were answered without the provider."""
    priced: Mapped[int] = mapped_column(Integer)
    """Calls whose cost is known."""
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    cache_read_tokens: Mapped[int] = mapped_column(BigInteger)
    cost_usd: Mapped[float] = mapped_column(Float)
    duration_s: Mapped[float] = mapped_column(Float)

    __table_args__ = ({"sqlite_with_rowid": False},)


class LlmBudgetAlarm(Base):
    """That a budget was reported to be nearly or wholly spent: whoever writes the row reports it, so that nobody else does."""

    __tablename__ = "llm_budget_alarms"

    budget: Mapped[str] = mapped_column(Name, primary_key=True)
    grain: Mapped[str] = mapped_column(String(8), primary_key=True)
    since: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True)
    """When the hour or the day began."""
    level: Mapped[str] = mapped_column(String(16), primary_key=True)
    """``warning`` or ``exceeded``."""
    spent_usd: Mapped[float] = mapped_column(Float)
    budget_usd: Mapped[float] = mapped_column(Float)
    service: Mapped[str] = mapped_column(Name)
    instance: Mapped[str] = mapped_column(Name)
    reported_at: Mapped[datetime] = mapped_column(UtcDateTime)

    __table_args__ = ({"sqlite_with_rowid": False},)
