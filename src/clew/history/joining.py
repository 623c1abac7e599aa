"""Records that two processes write: a handoff is made by one and picked up by another, and either may be the first to be in the database."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import Connection, Table, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from clew.history import tally
from clew.history.models import Handoff

_TABLE: Final[Table] = Handoff.__table__  # type: ignore[assignment]
_RANKS: Final = {"waiting": 0, "unclaimed": 1, "accepted": 2}
_OVER: Final = 3
_FATE: Final = ("status", "finished_at", "duration_s", "error_type", "error_message")
_FIRST: Final = ("accepted_at", "accepted_by", "wait_s")
_READ: Final = tuple(dict.fromkeys((*tally.reads(Handoff.__tablename__), *_FATE, *_FIRST)))
_EMPTY: Final = {column.name: None for column in _TABLE.columns}


def join(connection: Connection, rows: Iterable[Mapping[str, Any]], *, counts: bool = True) -> None:
    """Write what is known of handoffs by one of the processes that have to do with them; may be done twice to no harm.

    Who handed over says ``carrier``, if only that there is none: what that process says of the handoff itself is what counts. A status
    never goes back: what is over is not taken for accepted because that was written later.

    Args:
        connection: within a transaction.
        rows: what one process knows of a handoff, with all columns that a record must have.
        counts: whether they are added to their totals.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database is away, or does not take a row.
    """
    # All processes in the same order, or two could wait for each other
    said = {identity: list(group) for identity, group in groupby(sorted(rows, key=_identity), key=_identity)}
    new = {identity: {**_EMPTY, **_folded({**_EMPTY, **told[0]}, told[1:])} for identity, told in said.items()}
    dialect: Any = sqlite if connection.dialect.name == "sqlite" else postgresql
    insert = dialect.insert(_TABLE).on_conflict_do_nothing(index_elements=["id"]).returning(_TABLE.c.id)
    made = {row.id for row in connection.execute(insert, list(new.values()))}
    changes: list[tuple[Mapping[str, Any] | None, Mapping[str, Any]]] = [(None, new[identity]) for identity in made]
    if others := sorted(set(said) - made):
        query = select(_TABLE.c.id, *(_TABLE.c[name] for name in _READ)).where(_TABLE.c.id.in_(others))
        query = query.order_by(_TABLE.c.id)
        for found in connection.execute(query if dialect is sqlite else query.with_for_update()):
            before = dict(found._mapping)
            after = _folded(before, said[found.id])
            changes.append((before, after))
            values = {name: value for name, value in after.items() if name not in before or before[name] != value}
            if values:
                connection.execute(update(_TABLE).where(_TABLE.c.id == bindparam("of")), {"of": found.id, **values})
    if counts:
        tally.shift(connection, _TABLE.name, changes)


_identity: Final = itemgetter("id")


def _folded(before: Mapping[str, Any], told: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what is known of a handoff after something was told about it, in this order."""
    known = dict(before)
    for row in told:
        if "carrier" in row:
            known |= {name: value for name, value in row.items() if name not in _FATE and name not in _FIRST}
        if "status" in row and _goes_on_to(known, row):
            known |= {name: row.get(name) for name in _FATE}
        known |= {name: row[name] for name in _FIRST if known.get(name) is None and row.get(name) is not None}
    return known


def _goes_on_to(known: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    before, after = (_RANKS.get(one["status"], _OVER) for one in (known, row))
    if before == after == _OVER:
        # Tried again: the last end is the end
        return bool(row["finished_at"] >= known["finished_at"])
    return after > before
