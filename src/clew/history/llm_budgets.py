"""Budgets of LLM calls: what all processes have spent, and who of them says so."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, Final, Literal

from sqlalchemy import Connection, Table, delete

from clew import clock
from clew.history.llm_usage import spent_usd
from clew.history.models import LlmBudgetAlarm
from clew.history.tally import begin_of
from clew.history.writing import insert_into

Level = Literal["warning", "exceeded"]

KEPT_DAYS: Final = 90
_ALARMS: Final[Table] = LlmBudgetAlarm.__table__  # type: ignore[assignment]


def spent(connection: Connection, *, grain: Literal["hour", "day"], **of: str | None) -> tuple[datetime, float]:
    """Return when this hour or day began, in UTC, and what LLM calls have cost since then.

    Args:
        connection: to the history.
        grain: ``hour`` or ``day``.
        of: whose calls: ``service``, ``agent`` and ``user_id``; what is ``None`` does not matter.
    """
    since = begin_of(clock.utc_now(), grain)
    return since, spent_usd(connection, since=since, grain=grain, **of)


def claim(connection: Connection, **columns: Any) -> bool:
    """Tell whether it is up to this process to report: it is the first one to write the alarm.

    Args:
        connection: within a transaction.
        columns: of the alarm.
    """
    now = clock.utc_now()
    statement = insert_into(connection, _ALARMS).on_conflict_do_nothing().returning(_ALARMS.c.level)
    if connection.execute(statement, {**columns, "reported_at": now}).first() is None:
        return False
    connection.execute(delete(_ALARMS).where(_ALARMS.c.since < now - timedelta(days=KEPT_DAYS)))
    return True
