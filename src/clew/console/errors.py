"""What can go wrong in the console, as exceptions whose text is one sentence meant for the person reading it."""

from __future__ import annotations


class ConsoleError(Exception):
    """The console cannot do what was asked; the text names the setting or value at fault and the mend.

    Example:
        >>> str(ConsoleError("port 4318 is in use: choose another with CLEW_CONSOLE_PORT"))
        'port 4318 is in use: choose another with CLEW_CONSOLE_PORT'
    """


class StoreUnavailableError(ConsoleError):
    """The store cannot write or answer at the moment (disk full, locked, closed): keep the data and try again."""


class BodyRefusedError(ConsoleError):
    """A request body that is not stored; it carries the HTTP status to answer with.

    Args:
        status: HTTP status code, such as 400, 413 or 415.
        message: one sentence for the sender.

    Example:
        >>> BodyRefusedError(413, "the body is too large").status
        413
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class QueryError(ConsoleError):
    """A query argument is not usable; the text names the argument, its value and what is allowed."""
