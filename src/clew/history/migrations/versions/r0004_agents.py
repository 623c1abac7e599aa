"""Agents, their tasks and the handoffs between them, with their totals."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"

_PARTIAL = (
    ("handoffs_going_on", "id", "finished_at IS NULL AND process_key IS NOT NULL"),
    ("handoffs_to_be_claimed", "claim_by", "finished_at IS NULL AND accepted_at IS NULL AND claim_by IS NOT NULL"),
)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "agent_task_totals",
        sa.Column("grain", sa.String(length=8), nullable=False),
        sa.Column("since", _time(), nullable=False),
        sa.Column("agent", sa.String(length=255), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("bucket", sa.Integer(), nullable=False),
        sa.Column("tasks", sa.Integer(), nullable=False),
        sa.Column("duration_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("grain", "since", "agent", "type", "status", "bucket"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "agent_tasks",
        sa.Column("agent", sa.String(length=255), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("version", sa.String(length=255), nullable=True),
        sa.Column("task_id", sa.String(length=255), nullable=True),
        sa.Column("user_id", sa.String(length=255), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="1", nullable=False),
        sa.Column("handoff_id", sa.String(length=32), nullable=True),
        sa.Column("parent_id", sa.String(length=32), nullable=True),
        sa.Column("started_at", _time(), nullable=True),
        sa.Column("finished_at", _time(), nullable=True),
        sa.Column("wait_s", sa.Float(), nullable=True),
        sa.Column("duration_s", sa.Float(), nullable=True),
        sa.Column("result", _json(), nullable=True),
        sa.Column("error_type", sa.String(length=255), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("traceback", sa.Text(), nullable=True),
        sa.Column("metadata", _json(), nullable=True),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("service", sa.String(length=255), nullable=False),
        sa.Column("instance", sa.String(length=255), nullable=False),
        sa.Column("trace_id", sa.String(length=32), nullable=True),
        sa.Column("span_id", sa.String(length=16), nullable=True),
        sa.Column("correlation_id", sa.String(length=255), nullable=True),
        sa.Column("recorded_at", _time(), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=True),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column("process_started_at", _time(), nullable=True),
        sa.Column("process_key", sa.String(length=255), nullable=True),
        sa.Column("heartbeat_at", _time(), nullable=True),
        sa.Column("heartbeat_s", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("agent_tasks_by_agent", "agent_tasks", ["agent", "id"], unique=False)
    op.create_index("agent_tasks_by_correlation", "agent_tasks", ["correlation_id", "id"], unique=False)
    op.create_index("agent_tasks_by_status", "agent_tasks", ["status", "id"], unique=False)
    op.create_index(
        "agent_tasks_by_task",
        "agent_tasks",
        ["task_id", "id"],
        unique=False,
        postgresql_where=sa.text("task_id IS NOT NULL"),
    )
    op.create_index("agent_tasks_by_trace", "agent_tasks", ["trace_id", "id"], unique=False)
    op.create_index(
        "agent_tasks_by_user",
        "agent_tasks",
        ["user_id", "id"],
        unique=False,
        postgresql_where=sa.text("user_id IS NOT NULL"),
    )
    op.create_table(
        "agents",
        sa.Column("agent", sa.String(length=255), nullable=False),
        sa.Column("instance", sa.String(length=255), nullable=False),
        sa.Column("process", sa.String(length=32), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("version", sa.String(length=255), nullable=True),
        sa.Column("service", sa.String(length=255), nullable=False),
        sa.Column("registered_at", _time(), nullable=False),
        sa.Column("active", sa.Integer(), server_default="0", nullable=False),
        sa.Column("tasks", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failures", sa.Integer(), server_default="0", nullable=False),
        sa.Column("failures_in_a_row", sa.Integer(), server_default="0", nullable=False),
        sa.Column("last_started_at", _time(), nullable=True),
        sa.Column("last_finished_at", _time(), nullable=True),
        sa.Column("last_error_type", sa.String(length=255), nullable=True),
        sa.Column("gone_at", _time(), nullable=True),
        sa.Column("host", sa.String(length=255), nullable=True),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column("process_started_at", _time(), nullable=True),
        sa.Column("process_key", sa.String(length=255), nullable=True),
        sa.Column("heartbeat_at", _time(), nullable=True),
        sa.Column("heartbeat_s", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("agent", "instance", "process"),
    )
    op.create_table(
        "handoff_totals",
        sa.Column("grain", sa.String(length=8), nullable=False),
        sa.Column("since", _time(), nullable=False),
        sa.Column("source", sa.String(length=255), nullable=False),
        sa.Column("target", sa.String(length=255), nullable=False),
        sa.Column("mode", sa.String(length=32), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("handoffs", sa.Integer(), nullable=False),
        sa.Column("waits", sa.Integer(), nullable=False),
        sa.Column("wait_s", sa.Float(), nullable=False),
        sa.Column("duration_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("grain", "since", "source", "target", "mode", "status"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "handoffs",
        sa.Column("source", sa.String(length=255), nullable=False),
        sa.Column("target", sa.String(length=255), nullable=False),
        sa.Column("mode", sa.String(length=32), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("task_id", sa.String(length=255), nullable=True),
        sa.Column("user_id", sa.String(length=255), nullable=True),
        sa.Column("summary", _json(), nullable=True),
        sa.Column("depth", sa.Integer(), nullable=False),
        sa.Column("chain", _json(), nullable=True),
        sa.Column("is_loop", sa.Boolean(), nullable=False),
        sa.Column("is_too_deep", sa.Boolean(), nullable=False),
        sa.Column("parent_id", sa.String(length=32), nullable=True),
        sa.Column("carrier", _json(), nullable=True),
        sa.Column("handed_at", _time(), nullable=False),
        sa.Column("claim_by", _time(), nullable=True),
        sa.Column("accepted_at", _time(), nullable=True),
        sa.Column("accepted_by", sa.String(length=255), nullable=True),
        sa.Column("finished_at", _time(), nullable=True),
        sa.Column("wait_s", sa.Float(), nullable=True),
        sa.Column("duration_s", sa.Float(), nullable=True),
        sa.Column("error_type", sa.String(length=255), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("service", sa.String(length=255), nullable=False),
        sa.Column("instance", sa.String(length=255), nullable=False),
        sa.Column("trace_id", sa.String(length=32), nullable=True),
        sa.Column("span_id", sa.String(length=16), nullable=True),
        sa.Column("correlation_id", sa.String(length=255), nullable=True),
        sa.Column("recorded_at", _time(), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=True),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column("process_started_at", _time(), nullable=True),
        sa.Column("process_key", sa.String(length=255), nullable=True),
        sa.Column("heartbeat_at", _time(), nullable=True),
        sa.Column("heartbeat_s", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("handoffs_by_correlation", "handoffs", ["correlation_id", "id"], unique=False)
    op.create_index("handoffs_by_source", "handoffs", ["source", "id"], unique=False)
    op.create_index("handoffs_by_status", "handoffs", ["status", "id"], unique=False)
    op.create_index("handoffs_by_target", "handoffs", ["target", "id"], unique=False)
    op.create_index(
        "handoffs_by_task", "handoffs", ["task_id", "id"], unique=False, postgresql_where=sa.text("task_id IS NOT NULL")
    )
    op.create_index("handoffs_by_trace", "handoffs", ["trace_id", "id"], unique=False)
    op.create_index(
        "handoffs_by_user", "handoffs", ["user_id", "id"], unique=False, postgresql_where=sa.text("user_id IS NOT NULL")
    )
    for name, column, which in _PARTIAL:
        op.create_index(
            name, "handoffs", [column], unique=False, sqlite_where=sa.text(which), postgresql_where=sa.text(which)
        )


def downgrade() -> None:
    """Drop them with all that is in them."""
    for name, _, which in _PARTIAL:
        op.drop_index(name, table_name="handoffs", sqlite_where=sa.text(which), postgresql_where=sa.text(which))
    op.drop_index("handoffs_by_user", table_name="handoffs", postgresql_where=sa.text("user_id IS NOT NULL"))
    op.drop_index("handoffs_by_trace", table_name="handoffs")
    op.drop_index("handoffs_by_task", table_name="handoffs", postgresql_where=sa.text("task_id IS NOT NULL"))
    op.drop_index("handoffs_by_target", table_name="handoffs")
    op.drop_index("handoffs_by_status", table_name="handoffs")
    op.drop_index("handoffs_by_source", table_name="handoffs")
    op.drop_index("handoffs_by_correlation", table_name="handoffs")
    op.drop_table("handoffs")
    op.drop_table("handoff_totals")
    op.drop_table("agents")
    op.drop_index("agent_tasks_by_user", table_name="agent_tasks", postgresql_where=sa.text("user_id IS NOT NULL"))
    op.drop_index("agent_tasks_by_trace", table_name="agent_tasks")
    op.drop_index("agent_tasks_by_task", table_name="agent_tasks", postgresql_where=sa.text("task_id IS NOT NULL"))
    op.drop_index("agent_tasks_by_status", table_name="agent_tasks")
    op.drop_index("agent_tasks_by_correlation", table_name="agent_tasks")
    op.drop_index("agent_tasks_by_agent", table_name="agent_tasks")
    op.drop_table("agent_tasks")
    op.drop_table("agent_task_totals")


def _time() -> sa.DateTime:
    return sa.DateTime(timezone=True)


def _json() -> sa.types.TypeEngine[Any]:
    return sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
