"""Records, newest first, page by page: each page costs the same, however far back it is and however many records there are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, RowMapping, Table, func, or_, select

from clew.history.ids import ID_LENGTH, least_id, made_at

MAX_LIMIT: Final = 500
DEFAULT_LIMIT: Final = 50
MAX_SCANNED: Final = 10_000
"""How many records one page looks through for what no index knows."""
MIN_PART: Final = 4
"""How many digits of an id tell enough to look for it."""
MAX_WORDS: Final = 8
"""How many words are looked for; more are passed over."""

_TEXT_HEAD: Final = 300
_HEX: Final = re.compile(rf"[0-9a-f]{{1,{ID_LENGTH}}}")

Row = RowMapping
"""Columns of a record by their names."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some records, newest first.

    Attributes:
        rows: columns by name, without those that are large; of an error's message its beginning.
        next: where older ones go on, or ``None`` where there are none.
        previous: where newer ones go on, or ``None`` on the first page.
        searched_to: where the search was left off, because there was much to look through; it goes on at ``next``.
    """

    rows: Sequence[Row]
    next: str | None
    previous: str | None
    searched_to: datetime | None = None


@dataclass(kw_only=True)
class Conditions:
    """Which records are wanted.

    Attributes:
        indexed: what an index serves in the order of ids.
        scanned: that for which records have to be looked through.
    """

    indexed: list[ColumnElement[bool]] = field(default_factory=list)
    scanned: list[ColumnElement[bool]] = field(default_factory=list)

    def within(self, table: Table, since: datetime | None, until: datetime | None) -> None:
        """Want those that were recorded within a time."""
        if since is not None:
            self.indexed.append(table.c.id >= least_id(since))
        if until is not None:
            self.indexed.append(table.c.id < least_id(until))

    def exactly(self, *given: ColumnElement[bool] | None) -> None:
        """Want what all of these say: the first that is given has an index of its own, the rest is looked for in what that finds."""
        chosen = [one for one in given if one is not None]
        free = not self._is_narrowed
        self.indexed += chosen[:1] if free else []
        self.scanned += chosen[1:] if free else chosen
        self._is_narrowed = self._is_narrowed or bool(chosen)

    def words(self, text: str | None, *columns: ColumnElement[Any]) -> None:
        """Want those of which one of the columns has each word, in any order and case."""
        for word in (text or "").split()[:MAX_WORDS]:
            pattern = f"%{_escaped(word)}%"
            self.scanned.append(or_(*(column.ilike(pattern, escape="\\") for column in columns)))

    _is_narrowed: bool = field(default=False, init=False)


def equal(column: ColumnElement[Any], value: Any) -> ColumnElement[bool] | None:
    """Return the condition that a column has a value; ``None`` where the value does not matter."""
    return None if value is None else column == value


@dataclass(frozen=True, kw_only=True)
class Shelf:
    """A table whose records are read page by page.

    Attributes:
        table: it has an ``id`` that is in the order of time.
        large: columns that are told of one record only.
    """

    table: Table
    large: frozenset[str] = frozenset()

    def page(
        self,
        connection: Connection,
        wanted: Conditions,
        *,
        after: str | None = None,
        before: str | None = None,
        limit: int = DEFAULT_LIMIT,
    ) -> Page:
        """Return records, newest first.

        What no index knows is looked for in :data:`MAX_SCANNED` records at a time: a page may then have fewer records than wanted, or
        none, and a ``next`` all the same.

        Args:
            connection: to the history.
            wanted: which ones.
            after: ``next`` of the page before: older ones than that page's.
            before: ``previous`` of a page: newer ones than that page's.
            limit: how many, :data:`MAX_LIMIT` at most.

        Raises:
            ValueError: `after` or `before` is none of ours.
        """
        limit = max(1, min(limit, MAX_LIMIT))
        backward = before is not None and after is None
        start = _cursor(before if backward else after)
        identity = self.table.c.id
        indexed = list(wanted.indexed)
        if start is not None:
            indexed.append(identity > start if backward else identity < start)
        order = identity.asc() if backward else identity.desc()
        edge: str | None = None
        if wanted.scanned:
            edge = connection.scalar(select(identity).where(*indexed).order_by(order).limit(1).offset(MAX_SCANNED))
            if edge is not None:
                indexed.append(identity <= edge if backward else identity >= edge)
        query = select(*self._listed()).where(*indexed, *wanted.scanned).order_by(order).limit(limit + 1)
        found: list[Row] = [row._mapping for row in connection.execute(query)]
        more = len(found) > limit
        found = found[:limit]
        searched_to = made_at(edge) if edge is not None and not more else None
        onward = found[-1]["id"] if more else edge
        if backward:
            found.reverse()
            # Whoever finds nothing newer comes back to where he was
            back = found[-1]["id"] if found else _beside(start, 1)
            return Page(rows=found, next=back, previous=onward, searched_to=searched_to)
        back = found[0]["id"] if found else _beside(start, -1)
        return Page(rows=found, next=onward, previous=back if start is not None else None, searched_to=searched_to)

    def one(self, connection: Connection, identity: str) -> Row | None:
        """Return a record with all of its columns, or ``None`` where there is none of that id."""
        if not _HEX.fullmatch(identity):
            return None
        row = connection.execute(select(*self.table.c).where(self.table.c.id == identity)).first()
        return row._mapping if row is not None else None

    def alike(self, connection: Connection, part: str, *, limit: int = 10) -> list[Row]:
        """Return the records whose id begins, or else ends, with a part of one; ends are looked for among the newest only.

        Args:
            connection: to the history.
            part: hexadecimal digits, four at least; hyphens are left out.
            limit: how many.
        """
        digits = part.strip().lower().replace("-", "")
        if not _HEX.fullmatch(digits) or len(digits) < MIN_PART:
            return []
        identity = self.table.c.id
        # A range, not LIKE: an index serves it in every database and collation
        lowest, highest = digits.ljust(ID_LENGTH, "0"), digits.ljust(ID_LENGTH, "f")
        newest = select(*self._listed()).order_by(identity.desc()).limit(limit)
        found = list(connection.execute(newest.where(identity >= lowest, identity <= highest)))
        if not found:
            among = select(identity).order_by(identity.desc()).limit(20 * MAX_SCANNED).subquery()
            ends = select(among.c.id).where(func.substr(among.c.id, ID_LENGTH + 1 - len(digits)) == digits).limit(limit)
            found = list(connection.execute(newest.where(identity.in_(ends.scalar_subquery()))))
        return [row._mapping for row in found]

    def _listed(self) -> Iterable[ColumnElement[Any]]:
        for column in self.table.c:
            if column.name == "error_message":
                yield func.substr(column, 1, _TEXT_HEAD).label(column.name)
            elif column.name not in self.large:
                yield column


def _escaped(words: str) -> str:
    return re.sub(r"([\\%_])", r"\\\1", words)


def _beside(identity: str | None, step: int) -> str | None:
    return None if identity is None else f"{max(0, min(int(identity, 16) + step, 16**ID_LENGTH - 1)):0{ID_LENGTH}x}"


def _cursor(value: str | None) -> str | None:
    if value is None:
        return None
    if len(value) != ID_LENGTH or not _HEX.fullmatch(value):
        raise ValueError("give what 'next' or 'previous' of a page said")
    return value
