"""A process forks only while none of its threads is in a database.

A child has a copy of whatever the parent's connections were at: SQLite in the child takes a transaction of the parent's for one of
its own and refuses every write until the child ends, and a library that was within a lock never leaves it there.

Source: https://www.sqlite.org/howtocorrupt.html#_carrying_an_open_database_connection_across_a_fork_
"""

from __future__ import annotations

import os
import threading
from typing import Final

# Of a database that does not answer, the fork is not to wait for longer
_PATIENCE_S: Final = 2.0


class Uses:
    """Counts the threads that are in a database, as a context manager. A fork waits until there is none, two seconds at most."""

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """Know of none: in a child, only the thread that forked is there."""
        self._none = threading.Condition()
        self._threads: dict[int, int] = {}
        self._forks = 0

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._none:
            if me not in self._threads:
                # Who comes after a fork was asked for lets it pass; one that is in already goes on
                self._none.wait_for(lambda: not self._forks, _PATIENCE_S)
            self._threads[me] = self._threads.get(me, 0) + 1

    def __exit__(self, *exc_info: object) -> None:
        me = threading.get_ident()
        with self._none:
            left = self._threads.get(me, 0) - 1
            if left > 0:
                self._threads[me] = left
            else:
                self._threads.pop(me, None)
                self._none.notify_all()

    def hold(self) -> None:
        """Wait until no other thread is in a database, and keep them out."""
        me = threading.get_ident()
        self._none.acquire()
        self._forks += 1
        self._none.wait_for(lambda: not self._threads.keys() - {me}, _PATIENCE_S)

    def let_go(self) -> None:
        """Let them in again."""
        self._forks -= 1
        self._none.notify_all()
        self._none.release()


uses: Final = Uses()
os.register_at_fork(before=uses.hold, after_in_parent=uses.let_go, after_in_child=uses.begin_anew)
