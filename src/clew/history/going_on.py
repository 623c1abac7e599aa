"""Work of this process that goes on: what its heartbeat keeps alive, and its end waits for."""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

W = TypeVar("W")
R = TypeVar("R")


class GoingOn(Generic[W, R]):
    """Work that goes on, with its records where there is a history. A forked child starts with none.

    Example:
        >>> going_on: GoingOn[str, str] = GoingOn()
        >>> going_on.add("work", "its record")
        >>> going_on.any(), going_on.claim("work"), going_on.claim("work")
        (True, True, False)
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Know of none."""
        self._work: dict[int, tuple[W, R | None]] = {}
        self._claimed: set[int] = set()
        # The parent's lock may be held by a thread that a child does not have
        self._ended = threading.Condition()

    def add(self, work: W, record: R | None) -> None:
        """Count something in."""
        with self._ended:
            self._work[id(work)] = work, record

    def claim(self, work: W) -> bool:
        """Let one caller end something: true for the first that asks. Until its record is on its way, it is still waited for."""
        with self._ended:
            if id(work) not in self._work or id(work) in self._claimed:
                return False
            self._claimed.add(id(work))
            return True

    def discard(self, work: W) -> None:
        """Count something out."""
        with self._ended:
            self._work.pop(id(work), None)
            self._claimed.discard(id(work))
            if not self._work:
                self._ended.notify_all()

    def all(self) -> list[tuple[W, R | None]]:
        """Return what goes on, with the records where there is a history."""
        with self._ended:
            return list(self._work.values())

    def any(self) -> bool:
        """Tell whether something goes on."""
        return bool(self._work)

    def wait_for_none(self, timeout_s: float) -> bool:
        """Wait until nothing goes on; return whether that is so."""
        with self._ended:
            return self._ended.wait_for(lambda: not self._work, timeout_s)
