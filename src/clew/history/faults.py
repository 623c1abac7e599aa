"""Whose fault it is that something was not written: the database's, which may be well again later, or the row's, which never will.

Source: https://www.postgresql.org/docs/current/errcodes-appendix.html
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy.exc import (
    CompileError,
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    InvalidRequestError,
    ProgrammingError,
    SQLAlchemyError,
    StatementError,
)

from clew.history.database import Database, DatabaseError

# Classes of PostgreSQL's error codes: data exception, integrity constraint violation, program limit exceeded
_OF_ROWS: Final = ("22", "23", "54")
_DATATYPE_MISMATCH: Final = "42804"
_COLLISIONS: Final = ("40001", "40P01")


def is_of_row(error: BaseException) -> bool:
    """Tell whether the same row would be refused again, however well the database is."""
    if isinstance(error, DBAPIError):
        if error.connection_invalidated:
            return False
        code = _code(error)
        if code is not None:
            return code.startswith(_OF_ROWS) or code == _DATATYPE_MISMATCH
        # What the driver refuses before it asks the database; SQLite has no codes for these
        return isinstance(error, (DataError, IntegrityError, ProgrammingError, InterfaceError))
    if isinstance(error, (StatementError, CompileError, InvalidRequestError)):
        return True
    # A value that raises when it is looked at, a number that is too large, a column that there is not
    return not isinstance(error, (SQLAlchemyError, DatabaseError, OSError))


def is_collision(error: BaseException) -> bool:
    """Tell whether two processes were in each other's way, and one of them has to begin anew."""
    return isinstance(error, DBAPIError) and _code(error) in _COLLISIONS


def _code(error: DBAPIError) -> str | None:
    return getattr(error.orig, "sqlstate", None)


@contextmanager
def answering(database: Database) -> Iterator[None]:
    """Tell in one sentence that the database does not answer, for a command that somebody waits for.

    Raises:
        DatabaseError: in the place of what the database's driver raised.
    """
    try:
        yield
    except SQLAlchemyError as error:
        raise DatabaseError(f"{database} can't be used: {in_short(error)}") from error


def in_short(error: BaseException) -> str:
    """Return what went wrong, without the statement and its parameters, which may be secret."""
    origin: Any = getattr(error, "orig", None) or error
    return " ".join(str(origin).split()) or type(origin).__name__
