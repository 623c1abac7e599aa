"""Messages as processes would have left them, for tests that read them."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from clew.history.database import Database
from clew.history.ids import least_id
from clew.history.models import QueueMessage
from clew.history.writing import Change, write
from clew.settings import Settings
from tests.integration.kept_runs import NOW


def message_row(
    queue: str = "documents", status: str = "processed", *, ago_s: float = 60.0, **columns: Any
) -> dict[str, Any]:
    """Return a row of a message that was recorded some time ago."""
    at = NOW - timedelta(seconds=ago_s)
    sent = status == "sent" or columns.get("direction") == "sent"
    return {
        "id": f"{int(least_id(at), 16) | 7 << 76 | int.from_bytes(os.urandom(9)):032x}",
        "service": "shop",
        "instance": "shop-1",
        "trace_id": os.urandom(16).hex(),
        "span_id": os.urandom(8).hex(),
        "correlation_id": os.urandom(4).hex(),
        "recorded_at": at,
        "system": "redis",
        "queue": queue,
        "direction": "sent" if sent else "received",
        "status": status,
        "type": "document",
        "source": "shop",
        "user_id": None,
        "message_id": os.urandom(4).hex(),
        "messages": 1,
        "started_at": at,
        "finished_at": at,
        "wait_s": None if sent else 2.0,
        "duration_s": 0.25,
        "payload": {"id": 1},
        **columns,
    }


def keep(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Write rows into the history that the environment names; its tables are made."""
    kept = list(rows)
    database = Database(Settings.load().history_url())
    database.ensure(auto_upgrade=True)
    with database.write() as connection:
        write(connection, [Change(table=QueueMessage.__tablename__, row=row) for row in kept])
    database.engine.dispose()
    return kept
