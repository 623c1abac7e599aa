"""Totals by day, put together from those by hour, which get an index for the latest hours."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the table and fill it."""
    op.create_table(
        "job_run_daily_totals",
        sa.Column("job", sa.String(length=255), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("bucket", sa.Integer(), nullable=False),
        sa.Column("day", sa.DateTime(timezone=True), nullable=False),
        sa.Column("runs", sa.Integer(), nullable=False),
        sa.Column("duration_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("job", "status", "bucket", "day"),
        # In the order in which they are added up
        sqlite_with_rowid=False,
    )
    op.create_index("job_run_totals_by_hour", "job_run_totals", ["hour"])
    day = "date(hour) || ' 00:00:00.000000'"
    if op.get_bind().dialect.name != "sqlite":
        day = "date_trunc('day', hour, 'UTC')"
    columns = f"job, status, bucket, {day}, sum(runs), sum(duration_s)"
    op.execute(f"INSERT INTO job_run_daily_totals SELECT {columns} FROM job_run_totals GROUP BY 1, 2, 3, 4")  # noqa: S608 - constants


def downgrade() -> None:
    """Drop it: the totals by hour have it all."""
    op.drop_index("job_run_totals_by_hour", table_name="job_run_totals")
    op.drop_table("job_run_daily_totals")
