"""Reading the rows of a history, as they are in its database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from clew.history.database import Database
from clew.history.models import JobRun
from clew.settings import Settings


def rows(url: str, model: Any = JobRun) -> list[Any]:
    """Return all rows of a table."""
    database = Database(Settings(database_url=url).history_url())
    try:
        with database.read() as connection:
            return list(connection.execute(select(model.__table__)))
    finally:
        database.close()
