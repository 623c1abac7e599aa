"""Reading the history, from any process: nothing is made or changed by it, and what is in the way is said in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from clew.history.database import Database, DatabaseError
from clew.history.migrations import HEAD


class Reader:
    """Reads the history of any process.

    Where SQLite's file is not there yet, or has no tables yet, the history reads as empty, because whoever records the first
    row makes them. In PostgreSQL they are made by ``clew db upgrade``, so without them there is an error that says so.

    Args:
        url: ``sqlite:///...`` or ``postgresql+psycopg://...``, as :meth:`clew.settings.Settings.history_url` returns it.

    Raises:
        DatabaseError: the URL can't be read, or its driver is not installed.

    Example:
        >>> reader = Reader("sqlite:////nowhere/history.db")
        >>> reader.missing
        'there is no history yet: /nowhere/history.db is made when the first run is recorded'
    """

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self._is_checked = False

    @property
    def missing(self) -> str | None:
        """Why the history reads as empty, where it is not there yet."""
        if self._is_checked or not self.database.is_sqlite:
            return None
        path = self.database.url.database or ""
        try:
            is_there = Path(path).stat().st_size > 0
        except OSError:
            is_there = False
        if not is_there:
            return f"there is no history yet: {path} is made when the first run is recorded"
        if self._revision() is None:
            return f"there is no history yet: {path} gets its tables when the first run is recorded"
        return None

    @contextmanager
    def open(self) -> Iterator[Connection]:
        """Return a connection that sees one state of the history.

        Raises:
            DatabaseError: it can't be read; the message says why, and the mend.
        """
        with self.using() as database:
            if database is None:
                with _nothing() as connection:
                    yield connection
            else:
                with database.read() as connection:
                    yield connection

    @contextmanager
    def using(self) -> Iterator[Database | None]:
        """Return the database for what needs it itself, or ``None`` where there is no history yet.

        Raises:
            DatabaseError: it can't be used; the message says why, and the mend.
        """
        if self.missing is not None:
            yield None
            return
        self._check()
        with _in_words(self.database):
            yield self.database

    def close(self) -> None:
        """Close the connections."""
        self.database.engine.dispose()

    def _check(self) -> None:
        if self._is_checked:
            return
        revision = self._revision()
        if revision is None:
            raise DatabaseError(f"the tables in {self.database} are not there yet: run 'clew db upgrade'")
        if revision != HEAD:
            mend = "run 'clew db upgrade'" if revision < HEAD else "upgrade clew"
            raise DatabaseError(
                f"the tables in {self.database} are at revision {revision}, and this clew reads {HEAD}: {mend}"
            )
        self._is_checked = True

    def _revision(self) -> str | None:
        with _in_words(self.database):
            return self.database.current()


@contextmanager
def _in_words(database: Database) -> Iterator[None]:
    try:
        yield
    except SQLAlchemyError as error:
        cause: Any = getattr(error, "orig", None) or error
        said = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise DatabaseError(f"the history in {database} can't be read: {said}") from error


@contextmanager
def _nothing() -> Iterator[Connection]:
    from clew.history.models import Base

    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    Base.metadata.create_all(engine)
    with engine.connect() as connection:
        yield connection
    engine.dispose()
