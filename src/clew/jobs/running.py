"""The runs of this process that go on: what its heartbeat keeps alive, and its end waits for."""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from clew import clock
from clew.history.going_on import GoingOn

if TYPE_CHECKING:
    from clew.jobs.record import RunRecord
    from clew.jobs.run import JobRun

_MAX_FIRED: Final = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Firing:
    """A run that a scheduler of this process fired, which others may have fired as well.

    Attributes:
        id: the run's.
        job: the job's name.
        job_id: the scheduler's id of it.
        job_key: what the same job has in every process.
        scheduled_at: when it was due.
        period_s: the time between two runs, where that begins when a process does; else others have the same moments.
        fired_at: when it started, in seconds of the monotonic clock.
    """

    id: str
    job: str
    job_id: str | None
    job_key: str
    scheduled_at: datetime
    period_s: float | None
    fired_at: float

    @property
    def since(self) -> datetime:
        """When the job was due before."""
        return self.scheduled_at - timedelta(seconds=self.period_s or 0.0)


class Running(GoingOn["JobRun", "RunRecord"]):
    """Runs that go on. A forked child starts with none."""

    def reset(self) -> None:
        """Know of none."""
        super().reset()
        self._fired: deque[Firing] = deque(maxlen=_MAX_FIRED)

    def add(self, work: JobRun, record: RunRecord | None) -> None:
        """Count a run in."""
        super().add(work, record)
        occasion = work.occasion
        if record is not None and occasion.job_key is not None and occasion.scheduled_at is not None:
            self._fired.append(
                Firing(
                    id=record.id,
                    job=record.job,
                    job_id=occasion.job_id,
                    job_key=occasion.job_key,
                    scheduled_at=occasion.scheduled_at,
                    period_s=occasion.period_s,
                    fired_at=clock.monotonic_s(),
                )
            )

    def progress(self) -> dict[str, float | None]:
        """Return the ids of the records of those that go on, with how much is done where they say so."""
        return {record.id: record.progress for _, record in self.all() if record is not None}

    def take_fired(self, before: float) -> list[Firing]:
        """Return what was fired before a time of the monotonic clock and was not taken yet."""
        taken = []
        while self._fired and self._fired[0].fired_at <= before:
            taken.append(self._fired.popleft())
        return taken


running: Final = Running()
os.register_at_fork(after_in_child=running.reset)
