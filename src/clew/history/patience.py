"""Connections to PostgreSQL that do not wait for ever: a server may take a statement and never answer.

What the server itself limits (``statement_timeout``) is of no use then, and a live machine acknowledges what a dead server does
not read, so TCP notices nothing either.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import lru_cache
from typing import Any

from clew import clock


@lru_cache
def connection_class() -> Any:
    """Return psycopg's class of connections, with ``patience_s``: seconds that an answer is waited for."""
    import psycopg

    class PatientConnection(psycopg.Connection[Any]):
        patience_s = 30.0

        def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
            until = clock.monotonic_s() + self.patience_s
            return super().wait(_within(gen, until, self._give_up), *args, **kwargs)

        def _give_up(self) -> None:
            # What the server would answer later must not be taken for the answer to something else
            self.close()
            raise psycopg.OperationalError(f"the server has not answered for {self.patience_s:g} s")

    return PatientConnection


def _within(waiting: Generator[Any, Any, Any], until: float, give_up: Callable[[], None]) -> Generator[Any, Any, Any]:
    """Do as a generator of psycopg's does, which is told now and then that nothing has come yet, but not for ever."""
    try:
        wanted = next(waiting)
        while True:
            came = yield wanted
            if not came and clock.monotonic_s() > until:
                give_up()
            wanted = waiting.send(came)
    except StopIteration as end:
        return end.value
