"""What the schedulers of this process have, as the history shows it to every process."""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from sqlalchemy import Connection, Table, delete, update

from clew import clock
from clew.history import payload
from clew.history.models import MAX_NAME_LENGTH, ScheduledJob
from clew.history.writing import insert_into

if TYPE_CHECKING:
    from clew.history.recorder import Recorder

Verb = Literal["run", "pause", "resume", "remove"]

_TABLE: Final[Table] = ScheduledJob.__table__  # type: ignore[assignment]
_MAX_TRIGGER_BYTES: Final = 1_024


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """A job as a scheduler has it.

    Attributes:
        job_id: the scheduler's id of it.
        job: its name of low cardinality.
        job_key: what the same job has in every process, where that is known.
        trigger: in words.
        next_run_at: when it is due next; ``None`` where it is paused or pending.
        pending: the scheduler has not started yet.
        paused: it is not to run until it is resumed.
        stored: ``memory``, or what tells one store that processes may share from another.
    """

    job_id: str
    job: str
    job_key: str | None
    trigger: str
    next_run_at: datetime | None
    pending: bool
    paused: bool
    stored: str


class Scheduler(Protocol):
    """A scheduler, as its instrumentation shows it. Called on the history's thread."""

    def planned(self) -> list[Planned] | None:
        """Return what it has; ``None`` while it is busy with it."""
        ...

    def is_running(self) -> bool:
        """Tell whether it starts jobs."""
        ...

    def do(self, verb: Verb, job_id: str, requested_by: str | None) -> str:
        """Do something with a job, and return what was done, in words.

        Raises:
            LookupError: it has no such job.
            RuntimeError: this can't be done now; the message says why.
        """
        ...

    def hold(self) -> None:
        """Start no more jobs."""
        ...


@dataclass(slots=True, kw_only=True)
class _Known:
    scheduler: Scheduler
    is_dirty: bool = True
    told: dict[str, Planned] | None = None
    told_at: float = 0.0


class Schedules:
    """The schedulers of this process, by name."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}

    def add(self, kind: str, scheduler: Scheduler, *, owner: object) -> str:
        """Take a scheduler in, for as long as its owner lives, and return its name here.

        Args:
            kind: the name's beginning.
            scheduler: as its instrumentation shows it.
            owner: the scheduler itself.
        """
        with self._lock:
            number = 1
            while (name := kind if number == 1 else f"{kind}-{number}") in self._known:
                number += 1
            self._known[name] = _Known(scheduler=scheduler)
        weakref.finalize(owner, self._forget, name).atexit = False
        return name

    def changed(self, name: str) -> None:
        """Take note that a scheduler's jobs are not what they were."""
        known = self._known.get(name)
        if known is not None:
            known.is_dirty = True

    def all(self) -> dict[str, Scheduler]:
        """Return the schedulers by name."""
        with self._lock:
            return {name: known.scheduler for name, known in self._known.items()}

    def get(self, full_name: str) -> Scheduler | None:
        """Return the scheduler of a name as rows have it."""
        name, _, pid = full_name.rpartition("@")
        return self.all().get(name) if pid == str(os.getpid()) else None

    def tell(self, _: Connection, recorder: Recorder) -> None:
        """Write what has changed since the last time, and with each heartbeat that it is still so.

        Args:
            recorder: whose database it is written to, and whose process has the schedulers.
        """
        now = clock.monotonic_s()
        with self._lock:
            all_known = dict(self._known)
        for name, known in all_known.items():
            beats = now - known.told_at >= recorder.settings.heartbeat_s
            if not (known.is_dirty or beats):
                continue
            known.is_dirty = False
            planned = known.scheduler.planned()
            if planned is None:
                known.is_dirty = True
                continue
            jobs = {job.job_id: job for job in planned}
            is_shown = not (jobs or known.told) or self._write(recorder, name, jobs, known.told, beats=beats)
            known.told = jobs
            if not is_shown:
                # Another process has swept away what did not beat for long: all is told anew
                known.told, known.is_dirty = None, True
            if beats:
                known.told_at = now

    def forget_all(self) -> None:
        """Have no scheduler of this process shown any more."""
        with self._lock:
            for known in self._known.values():
                known.scheduler = _Gone()
                known.is_dirty = True

    def reset_after_fork(self) -> None:
        """Leave the parent's rows to the parent."""
        self._lock = threading.Lock()
        for known in self._known.values():
            known.is_dirty, known.told, known.told_at = True, None, 0.0

    def _forget(self, name: str) -> None:
        known = self._known.get(name)
        if known is not None:
            known.scheduler, known.is_dirty = _Gone(), True

    def _write(
        self, recorder: Recorder, name: str, jobs: dict[str, Planned], told: dict[str, Planned] | None, *, beats: bool
    ) -> bool:
        """Write what is not as it was told; return whether the history has all of it."""
        origin = recorder.origin
        now = clock.utc_now()
        own = {"instance": origin.instance, "scheduler": full_name(name)}
        of_this = (_TABLE.c.instance == own["instance"]) & (_TABLE.c.scheduler == own["scheduler"])
        common = {
            **own,
            "service": origin.service,
            "host": origin.host,
            "pid": origin.pid,
            "process_started_at": origin.process_started_at,
            "process_key": origin.process_key,
            "heartbeat_at": now,
            "heartbeat_s": recorder.settings.heartbeat_s,
        }
        changed = [job for job_id, job in jobs.items() if told is None or told.get(job_id) != job]
        with recorder.database.write() as connection:
            if told is None:
                connection.execute(delete(_TABLE).where(of_this))
            elif gone := [job_id for job_id in told if job_id not in jobs]:
                connection.execute(delete(_TABLE).where(of_this, _TABLE.c.job_id.in_(gone)))
            if changed:
                insert = insert_into(connection, _TABLE)
                columns = _row(changed[0], common)
                statement = insert.on_conflict_do_update(
                    index_elements=["instance", "scheduler", "job_id"],
                    set_={column: insert.excluded[column] for column in columns},
                )
                connection.execute(statement, [_row(job, common) for job in changed])
            if beats and jobs:
                return connection.execute(update(_TABLE).where(of_this).values(heartbeat_at=now)).rowcount >= len(jobs)
        return True


def full_name(name: str) -> str:
    """Return a scheduler's name as rows have it: instances may be called the same by whoever configures them."""
    return f"{name}@{os.getpid()}"


def _row(job: Planned, common: dict[str, Any]) -> dict[str, Any]:
    return {
        **common,
        "job_id": payload.text(job.job_id, max_bytes=MAX_NAME_LENGTH),
        "job": payload.text(job.job, max_bytes=MAX_NAME_LENGTH),
        "job_key": job.job_key,
        "trigger": payload.text(job.trigger, max_bytes=_MAX_TRIGGER_BYTES),
        "next_run_at": job.next_run_at,
        "pending": job.pending,
        "paused": job.paused,
        "stored": payload.text(job.stored, max_bytes=MAX_NAME_LENGTH),
    }


class _Gone:
    """A scheduler that is no more."""

    def planned(self) -> list[Planned]:
        return []

    def is_running(self) -> bool:
        return False

    def do(self, verb: Verb, job_id: str, requested_by: str | None) -> str:
        raise LookupError(job_id)

    def hold(self) -> None:
        """It does not start anything."""


schedules: Final = Schedules()
os.register_at_fork(after_in_child=schedules.reset_after_fork)
