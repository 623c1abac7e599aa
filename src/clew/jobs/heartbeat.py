"""The heartbeat: one UPDATE says for all runs of this process that they go on, and how far they are."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Table, case, update

from clew import clock
from clew.history.models import JobRun
from clew.jobs.running import running


def beat(connection: Connection) -> None:
    """Keep the runs of this process alive.

    Args:
        connection: within a transaction.
    """
    records = [record for _, record in running.all() if record is not None]
    if not records:
        return
    table: Table = JobRun.__table__  # type: ignore[assignment]
    values: dict[str, Any] = {"heartbeat_at": clock.utc_now()}
    shares = {record.id: record.progress for record in records if record.progress is not None}
    if shares:
        values["progress"] = case(shares, value=table.c.id, else_=table.c.progress)
    ids = sorted(record.id for record in records)
    connection.execute(update(table).where(table.c.id.in_(ids), table.c.status == "running").values(values))
