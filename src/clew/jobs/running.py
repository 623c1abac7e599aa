"""The runs of this process that go on: what its heartbeat keeps alive, and its end waits for."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from clew.jobs.record import RunRecord
    from clew.jobs.run import JobRun


class Running:
    """Runs by their id in the history. A forked child starts with none."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Know of none."""
        self._lock = threading.Lock()
        self._runs: dict[str, tuple[JobRun, RunRecord]] = {}
        self._changed = threading.Condition(self._lock)

    def add(self, run: JobRun, record: RunRecord) -> None:
        """Count a run in."""
        with self._lock:
            self._runs[record.id] = run, record

    def discard(self, record: RunRecord) -> None:
        """Count a run out."""
        with self._lock:
            self._runs.pop(record.id, None)
            if not self._runs:
                self._changed.notify_all()

    def all(self) -> list[tuple[JobRun, RunRecord]]:
        """Return those that go on."""
        with self._lock:
            return list(self._runs.values())

    def wait_for_none(self, timeout_s: float) -> bool:
        """Wait until none goes on; return whether that is so."""
        with self._lock:
            return self._changed.wait_for(lambda: not self._runs, timeout_s)


running: Final = Running()


# The parent's lock may be held by a thread that the child does not have
os.register_at_fork(after_in_child=running.reset)
