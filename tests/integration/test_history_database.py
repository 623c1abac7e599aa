from __future__ import annotations

from clew.history.database import Database
from clew.settings import Settings


def test_the_tables_are_made(database_url: str) -> None:
    database = Database(Settings.load().history_url())
    database.upgrade()
    assert database.differences() == []
