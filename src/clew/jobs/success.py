"""How long ago each job last succeeded, also before this process started: what an alert about a silent job looks at."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from clew import clock
from clew.catalog.metrics import JOB_LAST_SUCCESS
from clew.engine.metrics import registry

if TYPE_CHECKING:
    from sqlalchemy import Connection

_MAX_JOBS: Final = 10_000


class Successes:
    """When jobs of this process last succeeded, in seconds of the monotonic clock."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Know of nothing."""
        self._at: dict[str, float] = {}
        self._unknown: set[str] = set()
        self._asked: set[str] = set()

    def expect(self, job: str) -> None:
        """Have a job looked up in the history: it is this process's."""
        if job not in self._asked and len(self._asked) < _MAX_JOBS:
            self._asked.add(job)
            self._unknown.add(job)

    def note(self, job: str) -> None:
        """Take note of a success."""
        if job in self._at or len(self._at) < _MAX_JOBS:
            self._at[job] = clock.monotonic_s()
            self._asked.add(job)

    def read(self, connection: Connection) -> None:
        """Look up the jobs that have not succeeded since this process started."""
        if not self._unknown:
            return
        from sqlalchemy import select

        from clew.history.models import JobRun

        table: Any = JobRun.__table__
        for job in list(self._unknown):
            query = select(table.c.finished_at).where(table.c.job == job, table.c.status == "completed")
            found = connection.scalar(query.order_by(table.c.id.desc()).limit(1))
            self._unknown.discard(job)
            if found is not None:
                age_s = max(0.0, (clock.utc_now() - found).total_seconds())
                self._at.setdefault(job, clock.monotonic_s() - age_s)

    def measure(self) -> None:
        """Set the metric."""
        now = clock.monotonic_s()
        gauge = registry.declared(JOB_LAST_SUCCESS)
        for job, at in list(self._at.items()):
            gauge.set(now - at, **{"clew.job.name": job})


successes: Final = Successes()
registry.before_collection(successes.measure)
os.register_at_fork(after_in_child=successes.reset)
