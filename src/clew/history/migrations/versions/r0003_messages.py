"""Messages as they were sent and processed, with their totals."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "queue_message_totals",
        sa.Column("grain", sa.String(length=8), nullable=False),
        sa.Column("since", _time(), nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("direction", sa.String(length=16), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("source", sa.String(length=255), nullable=False),
        sa.Column("messages", sa.Integer(), nullable=False),
        sa.Column("waits", sa.Integer(), nullable=False),
        sa.Column("wait_s", sa.Float(), nullable=False),
        sa.Column("duration_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("grain", "since", "queue", "direction", "status", "type", "source"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "queue_messages",
        sa.Column("system", sa.String(length=32), nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("direction", sa.String(length=16), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=True),
        sa.Column("source", sa.String(length=255), nullable=True),
        sa.Column("user_id", sa.String(length=255), nullable=True),
        sa.Column("message_id", sa.String(length=255), nullable=True),
        sa.Column("consumer_group", sa.String(length=255), nullable=True),
        sa.Column("envelope", sa.String(length=16), nullable=True),
        sa.Column("attempt", sa.Integer(), server_default="1", nullable=False),
        sa.Column("messages", sa.Integer(), server_default="1", nullable=False),
        sa.Column("sent_at", _time(), nullable=True),
        sa.Column("started_at", _time(), nullable=True),
        sa.Column("finished_at", _time(), nullable=True),
        sa.Column("wait_s", sa.Float(), nullable=True),
        sa.Column("duration_s", sa.Float(), nullable=True),
        sa.Column("size_bytes", sa.Integer(), nullable=True),
        sa.Column("payload", _json(), nullable=True),
        sa.Column("error_type", sa.String(length=255), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("service", sa.String(length=255), nullable=False),
        sa.Column("instance", sa.String(length=255), nullable=False),
        sa.Column("trace_id", sa.String(length=32), nullable=True),
        sa.Column("span_id", sa.String(length=16), nullable=True),
        sa.Column("correlation_id", sa.String(length=255), nullable=True),
        sa.Column("recorded_at", _time(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "queue_depths",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("service", sa.String(length=255), nullable=False),
        sa.Column("instance", sa.String(length=255), nullable=False),
        sa.Column("system", sa.String(length=32), nullable=False),
        sa.Column("queue", sa.String(length=255), nullable=False),
        sa.Column("consumer_group", sa.String(length=255), nullable=True),
        sa.Column("kind", sa.String(length=255), nullable=False),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.Column("oldest_age_s", sa.Float(), nullable=True),
        sa.Column("problem", sa.String(length=255), nullable=True),
        sa.Column("observed_at", _time(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("queue_messages_by_correlation", "queue_messages", ["correlation_id", "id"], unique=False)
    op.create_index(
        "queue_messages_by_message",
        "queue_messages",
        ["message_id", "id"],
        unique=False,
        postgresql_where=sa.text("message_id IS NOT NULL"),
    )
    op.create_index("queue_messages_by_queue", "queue_messages", ["queue", "id"], unique=False)
    op.create_index("queue_messages_by_status", "queue_messages", ["status", "id"], unique=False)
    op.create_index("queue_messages_by_trace", "queue_messages", ["trace_id", "id"], unique=False)
    op.create_index(
        "queue_messages_by_user",
        "queue_messages",
        ["user_id", "id"],
        unique=False,
        postgresql_where=sa.text("user_id IS NOT NULL"),
    )


def downgrade() -> None:
    """Drop them with all that is in them."""
    op.drop_index(
        "queue_messages_by_user", table_name="queue_messages", postgresql_where=sa.text("user_id IS NOT NULL")
    )
    op.drop_index("queue_messages_by_trace", table_name="queue_messages")
    op.drop_index("queue_messages_by_status", table_name="queue_messages")
    op.drop_index("queue_messages_by_queue", table_name="queue_messages")
    op.drop_index(
        "queue_messages_by_message", table_name="queue_messages", postgresql_where=sa.text("message_id IS NOT NULL")
    )
    op.drop_index("queue_messages_by_correlation", table_name="queue_messages")
    op.drop_table("queue_depths")
    op.drop_table("queue_messages")
    op.drop_table("queue_message_totals")


def _time() -> sa.DateTime:
    return sa.DateTime(timezone=True)


def _json() -> sa.types.TypeEngine[Any]:
    return sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
