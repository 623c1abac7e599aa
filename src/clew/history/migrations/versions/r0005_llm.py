"""Requests to language models, with the totals of what they used."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "llm_calls",
        sa.Column("provider", sa.String(length=255), nullable=False),
        sa.Column("model", sa.String(length=255), nullable=False),
        sa.Column("response_model", sa.String(length=255), nullable=True),
        sa.Column("operation", sa.String(length=64), nullable=False),
        sa.Column("agent", sa.String(length=255), nullable=True),
        sa.Column("user_id", sa.String(length=255), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("started_at", _time(), nullable=False),
        sa.Column("duration_s", sa.Float(), nullable=True),
        sa.Column("first_token_s", sa.Float(), nullable=True),
        sa.Column("retries", sa.Integer(), server_default="0", nullable=False),
        sa.Column("is_cached", sa.Boolean(), nullable=False),
        sa.Column("input_tokens", sa.Integer(), nullable=True),
        sa.Column("output_tokens", sa.Integer(), nullable=True),
        sa.Column("cache_read_tokens", sa.Integer(), nullable=True),
        sa.Column("cache_write_tokens", sa.Integer(), nullable=True),
        sa.Column("reasoning_tokens", sa.Integer(), nullable=True),
        sa.Column("cost_usd", sa.Float(), nullable=True),
        sa.Column("error_type", sa.String(length=255), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("prompt", _json(), nullable=True),
        sa.Column("completion", _json(), nullable=True),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("service", sa.String(length=255), nullable=False),
        sa.Column("instance", sa.String(length=255), nullable=False),
        sa.Column("trace_id", sa.String(length=32), nullable=True),
        sa.Column("span_id", sa.String(length=16), nullable=True),
        sa.Column("correlation_id", sa.String(length=255), nullable=True),
        sa.Column("recorded_at", _time(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "llm_calls_by_agent", "llm_calls", ["agent", "id"], unique=False, postgresql_where=sa.text("agent IS NOT NULL")
    )
    op.create_index("llm_calls_by_correlation", "llm_calls", ["correlation_id", "id"], unique=False)
    op.create_index("llm_calls_by_model", "llm_calls", ["model", "id"], unique=False)
    op.create_index("llm_calls_by_status", "llm_calls", ["status", "id"], unique=False)
    op.create_index("llm_calls_by_trace", "llm_calls", ["trace_id", "id"], unique=False)
    op.create_index(
        "llm_calls_by_user",
        "llm_calls",
        ["user_id", "id"],
        unique=False,
        postgresql_where=sa.text("user_id IS NOT NULL"),
    )
    op.create_table(
        "llm_usage_totals",
        sa.Column("grain", sa.String(length=8), nullable=False),
        sa.Column("since", _time(), nullable=False),
        sa.Column("service", sa.String(length=255), nullable=False),
        sa.Column("provider", sa.String(length=255), nullable=False),
        sa.Column("model", sa.String(length=255), nullable=False),
        sa.Column("agent", sa.String(length=255), nullable=False),
        sa.Column("user_id", sa.String(length=255), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("calls", sa.Integer(), nullable=False),
        sa.Column("cached", sa.Integer(), nullable=False),
        sa.Column("priced", sa.Integer(), nullable=False),
        sa.Column("input_tokens", sa.BigInteger(), nullable=False),
        sa.Column("output_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cache_read_tokens", sa.BigInteger(), nullable=False),
        sa.Column("cost_usd", sa.Float(), nullable=False),
        sa.Column("duration_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("grain", "since", "service", "provider", "model", "agent", "user_id", "status"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "llm_budget_alarms",
        sa.Column("budget", sa.String(length=255), nullable=False),
        sa.Column("grain", sa.String(length=8), nullable=False),
        sa.Column("since", _time(), nullable=False),
        sa.Column("level", sa.String(length=16), nullable=False),
        sa.Column("spent_usd", sa.Float(), nullable=False),
        sa.Column("budget_usd", sa.Float(), nullable=False),
        sa.Column("service", sa.String(length=255), nullable=False),
        sa.Column("instance", sa.String(length=255), nullable=False),
        sa.Column("reported_at", _time(), nullable=False),
        sa.PrimaryKeyConstraint("budget", "grain", "since", "level"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    """Drop them with all that is in them."""
    op.drop_table("llm_budget_alarms")
    op.drop_table("llm_usage_totals")
    op.drop_index("llm_calls_by_user", table_name="llm_calls", postgresql_where=sa.text("user_id IS NOT NULL"))
    op.drop_index("llm_calls_by_trace", table_name="llm_calls")
    op.drop_index("llm_calls_by_status", table_name="llm_calls")
    op.drop_index("llm_calls_by_model", table_name="llm_calls")
    op.drop_index("llm_calls_by_correlation", table_name="llm_calls")
    op.drop_index("llm_calls_by_agent", table_name="llm_calls", postgresql_where=sa.text("agent IS NOT NULL"))
    op.drop_table("llm_calls")


def _time() -> sa.DateTime:
    return sa.DateTime(timezone=True)


def _json() -> sa.types.TypeEngine[Any]:
    return sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
