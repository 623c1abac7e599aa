"""LLM calls as processes would have left them, for tests that read them."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any

from clew.history.database import Database
from clew.history.ids import least_id
from clew.history.models import LlmCall
from clew.history.writing import Change, write
from clew.settings import Settings

NOW = datetime.now(UTC).replace(microsecond=0)


def call_row(
    model: str = "gpt-4o", status: str = "completed", *, ago_s: float = 60.0, **columns: Any
) -> dict[str, Any]:
    """Return a row of a call that began some time ago."""
    started_at = columns.pop("at", NOW - timedelta(seconds=ago_s))
    chance = int.from_bytes(os.urandom(9))
    return {
        "id": f"{int(least_id(started_at), 16) | 7 << 76 | chance:032x}",
        "provider": "openai",
        "model": model,
        "response_model": None,
        "operation": "chat",
        "agent": None,
        "user_id": None,
        "status": status,
        "service": "shop",
        "instance": "shop-1",
        "trace_id": os.urandom(16).hex(),
        "span_id": os.urandom(8).hex(),
        "correlation_id": os.urandom(4).hex(),
        "recorded_at": started_at,
        "started_at": started_at,
        "duration_s": 2.0,
        "first_token_s": None,
        "retries": 0,
        "is_cached": False,
        "input_tokens": 100,
        "output_tokens": 10,
        "cache_read_tokens": None,
        "cost_usd": 0.5,
        **columns,
    }


def keep_calls(*rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Write rows into the history that the environment names; its tables are made."""
    kept = list(rows)
    database = Database(Settings.load().history_url())
    database.ensure(auto_upgrade=True)
    with database.write() as connection:
        write(connection, [Change(table=LlmCall.__tablename__, row=row) for row in kept])
    database.engine.dispose()
    return kept
