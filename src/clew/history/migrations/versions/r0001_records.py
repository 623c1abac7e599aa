"""Runs of jobs with their totals, what schedulers have and are asked to do, and results of health checks."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "health_checks",
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("duration_s", sa.Float(), nullable=False),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("details", _json(), nullable=True),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("service", sa.String(length=255), nullable=False),
        sa.Column("instance", sa.String(length=255), nullable=False),
        sa.Column("trace_id", sa.String(length=32), nullable=True),
        sa.Column("span_id", sa.String(length=16), nullable=True),
        sa.Column("correlation_id", sa.String(length=255), nullable=True),
        sa.Column("recorded_at", _time(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("health_checks_by_name", "health_checks", ["name", "id"])
    op.create_table(
        "job_commands",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("instance", sa.String(length=255), nullable=False),
        sa.Column("scheduler", sa.String(length=255), nullable=False),
        sa.Column("job_id", sa.String(length=255), nullable=False),
        sa.Column("verb", sa.String(length=16), nullable=False),
        sa.Column("requested_by", sa.String(length=255), nullable=True),
        sa.Column("requested_at", _time(), nullable=False),
        sa.Column("done_at", _time(), nullable=True),
        sa.Column("outcome", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("job_commands_to_do", "job_commands", ["instance"], postgresql_where=sa.text("done_at IS NULL"))
    op.create_table(
        "job_run_totals",
        sa.Column("job", sa.String(length=255), nullable=False),
        sa.Column("hour", _time(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("bucket", sa.Integer(), nullable=False),
        sa.Column("runs", sa.Integer(), nullable=False),
        sa.Column("duration_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("job", "hour", "status", "bucket"),
    )
    op.create_table(
        "job_runs",
        sa.Column("job", sa.String(length=255), nullable=False),
        sa.Column("job_id", sa.String(length=255), nullable=True),
        sa.Column("job_key", sa.String(length=64), nullable=True),
        sa.Column("source", sa.String(length=32), nullable=False),
        sa.Column("trigger", sa.String(length=64), nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("scheduled_at", _time(), nullable=True),
        sa.Column("started_at", _time(), nullable=True),
        sa.Column("finished_at", _time(), nullable=True),
        sa.Column("duration_s", sa.Float(), nullable=True),
        sa.Column("lateness_s", sa.Float(), nullable=True),
        sa.Column("attempt", sa.Integer(), server_default="1", nullable=False),
        sa.Column("progress", sa.Float(), nullable=True),
        sa.Column("user_id", sa.String(length=255), nullable=True),
        sa.Column("result", _json(), nullable=True),
        sa.Column("error_type", sa.String(length=255), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("traceback", sa.Text(), nullable=True),
        sa.Column("metadata", _json(), nullable=True),
        sa.Column("host", sa.String(length=255), nullable=True),
        sa.Column("pid", sa.Integer(), nullable=True),
        sa.Column("process_started_at", _time(), nullable=True),
        sa.Column("process_key", sa.String(length=255), nullable=True),
        sa.Column("heartbeat_at", _time(), nullable=True),
        sa.Column("heartbeat_s", sa.Float(), nullable=True),
        sa.Column("duplicate_of", sa.String(length=32), nullable=True),
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("service", sa.String(length=255), nullable=False),
        sa.Column("instance", sa.String(length=255), nullable=False),
        sa.Column("trace_id", sa.String(length=32), nullable=True),
        sa.Column("span_id", sa.String(length=16), nullable=True),
        sa.Column("correlation_id", sa.String(length=255), nullable=True),
        sa.Column("recorded_at", _time(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("job_runs_by_correlation", "job_runs", ["correlation_id", "id"])
    op.create_index("job_runs_by_due", "job_runs", ["job", "scheduled_at"])
    op.create_index("job_runs_by_job", "job_runs", ["job", "id"])
    op.create_index("job_runs_by_job_status", "job_runs", ["job", "status", "id"])
    op.create_index("job_runs_by_status", "job_runs", ["status", "id"])
    op.create_index("job_runs_by_trace", "job_runs", ["trace_id", "id"])
    op.create_index("job_runs_by_user", "job_runs", ["user_id", "id"], postgresql_where=sa.text("user_id IS NOT NULL"))
    op.create_table(
        "scheduled_jobs",
        sa.Column("instance", sa.String(length=255), nullable=False),
        sa.Column("scheduler", sa.String(length=255), nullable=False),
        sa.Column("job_id", sa.String(length=255), nullable=False),
        sa.Column("job", sa.String(length=255), nullable=False),
        sa.Column("job_key", sa.String(length=64), nullable=True),
        sa.Column("service", sa.String(length=255), nullable=False),
        sa.Column("trigger", sa.Text(), nullable=False),
        sa.Column("next_run_at", _time(), nullable=True),
        sa.Column("pending", sa.Boolean(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("stored", sa.String(length=255), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("process_started_at", _time(), nullable=True),
        sa.Column("process_key", sa.String(length=255), nullable=True),
        sa.Column("heartbeat_at", _time(), nullable=False),
        sa.Column("heartbeat_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("instance", "scheduler", "job_id"),
    )
    op.create_index("scheduled_jobs_by_job", "scheduled_jobs", ["job_id"])


def downgrade() -> None:
    """Drop them with all that is in them."""
    op.drop_index("scheduled_jobs_by_job", table_name="scheduled_jobs")
    op.drop_table("scheduled_jobs")
    op.drop_index("job_runs_by_user", table_name="job_runs", postgresql_where=sa.text("user_id IS NOT NULL"))
    op.drop_index("job_runs_by_trace", table_name="job_runs")
    op.drop_index("job_runs_by_status", table_name="job_runs")
    op.drop_index("job_runs_by_job_status", table_name="job_runs")
    op.drop_index("job_runs_by_job", table_name="job_runs")
    op.drop_index("job_runs_by_correlation", table_name="job_runs")
    op.drop_index("job_runs_by_due", table_name="job_runs")
    op.drop_table("job_runs")
    op.drop_table("job_run_totals")
    op.drop_index("job_commands_to_do", table_name="job_commands", postgresql_where=sa.text("done_at IS NULL"))
    op.drop_table("job_commands")
    op.drop_index("health_checks_by_name", table_name="health_checks")
    op.drop_table("health_checks")


def _time() -> sa.DateTime:
    return sa.DateTime(timezone=True)


def _json() -> sa.types.TypeEngine[Any]:
    return sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
