"""How rows get into the tables: idempotently, with the totals that statistics are read from in the same transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any, Literal

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite

from clew.history import tally
from clew.history.joining import join
from clew.history.models import Base

Verb = Literal["record", "end", "join"]


@dataclass(frozen=True, kw_only=True)
class Change:
    """A row to be written.

    Attributes:
        table: the table's name.
        row: all of its columns that are known.
        verb: ``record`` writes nothing where the row is there already; ``end`` puts these columns in its place;
            ``join`` is for handoffs, of which two processes tell: see :func:`clew.history.joining.join`.
    """

    table: str
    row: Mapping[str, Any]
    verb: Verb = "record"


def write(connection: Connection, changes: Iterable[Change], *, counts: bool = True) -> None:
    """Write rows, each table's in the order given.

    Args:
        connection: within a transaction.
        changes: the rows.
        counts: whether they are added to their totals.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database is away, or does not take a row.
    """
    ordered = sorted(changes, key=lambda change: (change.table, change.verb != "record"))
    for (table_name, verb), group in groupby(ordered, key=lambda change: (change.table, change.verb)):
        rows = [dict(change.row) for change in group]
        is_end = verb == "end"
        if verb == "join":
            join(connection, rows, counts=counts)
            continue
        if counts:
            tally.count(connection, table_name, rows, replaces=is_end)
        # Rows of one statement have the same columns
        rows.sort(key=sorted)
        for columns, alike in groupby(rows, key=sorted):
            connection.execute(_insertion(connection.dialect.name, table_name, tuple(columns), is_end), list(alike))


# Made once: to put a statement together takes longer than to execute it


@lru_cache(maxsize=256)
def _insertion(dialect: str, table_name: str, columns: tuple[str, ...], is_end: bool) -> Any:  # noqa: FBT001 - a part of the key
    insert = _insert(dialect, table_name)
    if unknown := set(columns) - set(insert.table.columns.keys()):
        raise KeyError(f"{table_name} has no column {', '.join(sorted(unknown))}")
    if not is_end:
        return insert.on_conflict_do_nothing(index_elements=["id"])
    return insert.on_conflict_do_update(
        index_elements=["id"], set_={name: insert.excluded[name] for name in columns if name != "id"}
    )


def _insert(dialect: str, table_name: str) -> Any:
    table = Base.metadata.tables[table_name]
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)


def insert_into(connection: Connection, table: Table) -> Any:
    """Return an INSERT that can say what is done about rows that are there already, as the database has it."""
    return _insert(connection.dialect.name, table.name)
