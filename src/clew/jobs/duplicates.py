"""Runs of a job that several processes fire, as when each worker of a server has a scheduler: marked, and reported.

A run that two processes fire for the same moment is one run too many. Intervals begin when a process does, so theirs are told by
what the processes' schedulers have: a run of the same job by another process that is alive, since this job was last due.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Row, Table, select, update

from clew import clock
from clew.catalog.metrics import JOB_DUPLICATES
from clew.engine.metrics import registry
from clew.engine.runtime import current_log_stream
from clew.history.models import JobRun, ScheduledJob
from clew.jobs.running import Firing, running

if TYPE_CHECKING:
    from clew.history.recorder import Recorder

_RUNS: Final[Table] = JobRun.__table__  # type: ignore[assignment]
_SCHEDULED: Final[Table] = ScheduledJob.__table__  # type: ignore[assignment]
_STARTED: Final = ("running", "completed", "failed", "cancelled")
# Until then the others have committed theirs
_SETTLED_S: Final = 0.5
_reported: set[str] = set()


def look(connection: Connection, recorder: Recorder) -> None:
    """Look for runs of other processes beside those that this one fired lately, and mark all but the first process's.

    Args:
        connection: to look with.
        recorder: whose database it is, and whose process this is.
    """
    own = recorder.origin.process_key
    for firing in running.take_fired(clock.monotonic_s() - _SETTLED_S):
        found = _alike(connection, firing, recorder.origin.service)
        schedules = _schedules(connection, firing)
        if firing.period_s is not None:
            found = [row for row in found if row.process_key == own or row.process_key in schedules]
        mine = [row for row in found if row.id == firing.id]
        others = [row for row in found if row.process_key != own]
        if not (mine and others):
            continue
        first = min([*others, *mine], key=lambda row: (row.process_started_at, row.process_key, row.id))
        if firing.period_s is None:
            marked = [row for row in found if row.process_key != first.process_key]
        else:
            marked = mine if first not in mine else []
        if marked:
            stores = {schedules.get(first.process_key), schedules.get(marked[0].process_key)}
            _mark(recorder, first, marked)
            _report(firing, first, is_shared=len(stores) == 1 and not stores & {None, "memory"})


def _alike(connection: Connection, firing: Firing, service: str) -> list[Row[Any]]:
    """Return the runs for the same moment, or since the job was last due; newest last."""
    query = select(_RUNS.c.id, _RUNS.c.process_key, _RUNS.c.process_started_at).where(
        _RUNS.c.job == firing.job,
        _RUNS.c.job_key == firing.job_key,
        _RUNS.c.service == service,
        _RUNS.c.status.in_(_STARTED),
        _RUNS.c.process_key.is_not(None),
        _RUNS.c.scheduled_at <= firing.scheduled_at,
        _RUNS.c.scheduled_at > firing.since
        if firing.period_s is not None
        else _RUNS.c.scheduled_at == firing.scheduled_at,
    )
    return list(connection.execute(query.order_by(_RUNS.c.id).limit(100)))


def _schedules(connection: Connection, firing: Firing) -> dict[str, str]:
    """Return where the processes keep the job that have it in a scheduler; those that are gone are swept away."""
    query = select(_SCHEDULED.c.process_key, _SCHEDULED.c.stored).where(
        _SCHEDULED.c.job_key == firing.job_key, _SCHEDULED.c.process_key.is_not(None)
    )
    return {row.process_key: row.stored for row in connection.execute(query)}


def _mark(recorder: Recorder, first: Row[Any], marked: list[Row[Any]]) -> None:
    ids = sorted(row.id for row in marked)
    unmarked = update(_RUNS).where(_RUNS.c.id.in_(ids), _RUNS.c.duplicate_of.is_(None))
    with recorder.database.write() as writing:
        count = writing.execute(unmarked.values(duplicate_of=first.id)).rowcount
        job = writing.scalar(select(_RUNS.c.job).where(_RUNS.c.id == first.id))
    if count:
        registry.declared(JOB_DUPLICATES).add(count, **{"clew.job.name": job})


def _report(firing: Firing, first: Row[Any], *, is_shared: bool) -> None:
    if firing.job_key in _reported:
        return
    _reported.add(firing.job_key)
    fields = {
        "clew.job.name": firing.job,
        "clew.job.id": firing.job_id,
        "clew.job.run.id": firing.id,
        "clew.job.duplicate_of": first.id,
        "clew.job.duplicate.reason": "shared_store" if is_shared else "own_schedulers",
        "advice": "several processes run this job: start the scheduler in one process only, beside the server's workers",
    }
    current_log_stream().take("warning", "job_duplicate", "clew.job", fields)
