"""Jobs of the schedulers of all processes: what there is, and running, pausing, resuming and removing one from anywhere.

A scheduler of this process is asked directly. One of another is asked by a row in the history, which its process takes within a
second or so; what came of it is written there, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, get_args

from sqlalchemy import Row, Table, insert, select

from clew import clock
from clew.diagnostics import ClewError
from clew.engine import runtime
from clew.history import payload
from clew.history.database import Database
from clew.history.ids import new_id
from clew.history.liveness import BEATS
from clew.history.models import MAX_NAME_LENGTH, JobCommand, ScheduledJob
from clew.history.processes import is_gone
from clew.jobs import commands
from clew.jobs.record import the_recorder
from clew.jobs.schedule import Verb, schedules

_SCHEDULED: Final[Table] = ScheduledJob.__table__  # type: ignore[assignment]
_COMMANDS: Final[Table] = JobCommand.__table__  # type: ignore[assignment]
VERBS: Final[tuple[str, ...]] = get_args(Verb)


class UnknownJobError(ClewError):
    """No scheduler that is alive has a job of this id."""


class UnknownCommandError(ClewError):
    """Nothing of this id was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A job that a scheduler has.

    Attributes:
        job_id: the scheduler's id of it.
        job: its name, as runs have it.
        service: whose scheduler it is.
        instance: the service's instance.
        scheduler: which one of it.
        trigger: in words.
        next_run_at: when it is due next; ``None`` where it is paused or pending.
        pending: the scheduler has not started yet.
        paused: it is not to run until it is resumed.
        stored: ``memory``, or what tells one store that processes may share from another.
        host: where the scheduler's process is.
        pid: its number there.
        heartbeat_at: when that last said so.
    """

    job_id: str
    job: str
    service: str
    instance: str
    scheduler: str
    trigger: str
    next_run_at: datetime | None
    pending: bool
    paused: bool
    stored: str
    host: str
    pid: int
    heartbeat_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """Something that was asked of a scheduler.

    Attributes:
        id: what :func:`outcome` is asked for.
        job_id: the scheduler's id of the job.
        verb: ``run``, ``pause``, ``resume`` or ``remove``.
        scheduler: which scheduler was asked.
        instance: of which instance of a service.
        requested_by: who asked.
        requested_at: when.
        done_at: when it was done or refused; ``None`` while it waits.
        outcome: what came of it, such as ``done: paused`` or ``refused: it is running already``; ``None`` while it waits.
    """

    id: str
    job_id: str
    verb: str
    scheduler: str
    instance: str
    requested_by: str | None
    requested_at: datetime
    done_at: datetime | None = None
    outcome: str | None = None


def list_jobs(*, job_id: str | None = None, database: Database | None = None) -> list[Job]:
    """Return the jobs that schedulers have, of all processes that are alive, those that are due first in front.

    Args:
        job_id: those of one id only.
        database: the history; by default this process's.

    Raises:
        ClewError: the history is switched off.
        sqlalchemy.exc.SQLAlchemyError: the database is away.

    Example:
        >>> [job.job_id for job in list_jobs()]
        []
    """
    query = select(_SCHEDULED).order_by(
        _SCHEDULED.c.next_run_at.is_(None), _SCHEDULED.c.next_run_at, _SCHEDULED.c.job_id, _SCHEDULED.c.pid
    )
    if job_id is not None:
        query = query.where(_SCHEDULED.c.job_id == job_id)
    with (database or _database()).read() as connection:
        return [_job(row) for row in connection.execute(query) if _is_alive(row)]


def ask(
    job_id: str,
    verb: Verb,
    *,
    requested_by: str | None = None,
    instance: str | None = None,
    scheduler: str | None = None,
    database: Database | None = None,
) -> Command:
    """Ask the scheduler that has a job to do something with it.

    Args:
        job_id: the scheduler's id of the job.
        verb: ``run`` (now, once, whatever its schedule), ``pause``, ``resume`` or ``remove``.
        requested_by: who asks; a run that is started becomes theirs.
        instance: of which instance of a service, where several have the job; by default the one that has been there longest.
        scheduler: which scheduler of it.
        database: the history; by default this process's.

    Returns:
        The command, with its outcome where the scheduler is in this process; else see :func:`outcome`.

    Raises:
        UnknownJobError: no scheduler that is alive has such a job.
        ClewError: the history is switched off.
        ValueError: there is no such verb.
        sqlalchemy.exc.SQLAlchemyError: the database is away.

    Example:
        >>> ask("nightly", "pause")
        Traceback (most recent call last):
        ...
        clew.jobs.control.UnknownJobError: no scheduler has a job 'nightly'
    """
    if verb not in VERBS:
        raise ValueError(f"{verb!r} is none of {', '.join(VERBS)}")
    history = database or _database()
    with history.read() as connection:
        query = select(_SCHEDULED).where(_SCHEDULED.c.job_id == job_id)
        rows = [row for row in connection.execute(query) if _is_alive(row)]
    rows = [row for row in rows if instance in (None, row.instance) and scheduler in (None, row.scheduler)]
    if not rows:
        raise UnknownJobError(f"no scheduler has a job {job_id!r}")
    chosen = min(rows, key=lambda row: (row.pending, str(row.process_started_at), row.scheduler))
    values: dict[str, Any] = {
        "id": new_id(),
        "instance": chosen.instance,
        "scheduler": chosen.scheduler,
        "job_id": chosen.job_id,
        "verb": verb,
        "requested_by": payload.text(requested_by, max_bytes=MAX_NAME_LENGTH),
        "requested_at": clock.utc_now(),
    }
    here = _is_here(chosen)
    if here is not None:
        values["outcome"] = commands.do(here, verb, job_id, values["requested_by"])
        values["done_at"] = clock.utc_now()
    with history.write() as connection:
        connection.execute(insert(_COMMANDS).values(values))
    return Command(**values)


def outcome(command_id: str, *, database: Database | None = None) -> Command:
    """Return what came of a command so far.

    Args:
        command_id: of what :func:`ask` returned.
        database: the history; by default this process's.

    Raises:
        UnknownCommandError: there is no such command.
        ClewError: the history is switched off.
        sqlalchemy.exc.SQLAlchemyError: the database is away.

    Example:
        >>> outcome("0" * 32)
        Traceback (most recent call last):
        ...
        clew.jobs.control.UnknownCommandError: nothing was asked for by the id 00000000000000000000000000000000
    """
    with (database or _database()).read() as connection:
        row = connection.execute(select(_COMMANDS).where(_COMMANDS.c.id == command_id)).one_or_none()
    if row is None:
        raise UnknownCommandError(f"nothing was asked for by the id {command_id}")
    known = dict(row._mapping)
    if known["outcome"] == commands.TAKEN:
        known |= {"done_at": None, "outcome": None}
    elif known["done_at"] is None and clock.utc_now() - row.requested_at > commands.EXPIRY:
        known["outcome"] = "expired: its process did not take it"
    return Command(**known)


def _database() -> Database:
    recorder = the_recorder()
    if recorder is not None:
        recorder.database.ensure(auto_upgrade=recorder.settings.database_auto_upgrade)
        return recorder.database
    settings = runtime.ready().settings
    if settings is None or not settings.history:
        raise ClewError("the history is switched off (CLEW_HISTORY=false): nothing is known of other processes' jobs")
    made = Database(settings.history_url())
    made.ensure(auto_upgrade=settings.database_auto_upgrade)
    return made


def _is_alive(row: Row[Any]) -> bool:
    gone = is_gone(row.pid, row.process_key) if row.process_key is not None else None
    if gone is None:
        return bool((clock.utc_now() - row.heartbeat_at).total_seconds() < BEATS * row.heartbeat_s)
    return not gone


def _is_here(row: Row[Any]) -> Any:
    recorder = the_recorder()
    if recorder is None or row.process_key != recorder.origin.process_key:
        return None
    return schedules.get(row.scheduler)


def _job(row: Row[Any]) -> Job:
    return Job(**{name: getattr(row, name) for name in Job.__dataclass_fields__})
