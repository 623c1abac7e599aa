"""What schedulers have and are asked to do, through the history: the same for the HTTP API and for the command line."""

from __future__ import annotations

from typing import Final

from clew.history.liveness import mark_lost
from clew.history.reading import Reader
from clew.jobs import control
from clew.jobs.control import Command, Job, UnknownJobError
from clew.jobs.schedule import Verb

POLL_S: Final = 0.2


def planned(reader: Reader, *, job: str | None = None, instance: str | None = None) -> list[Job]:
    """Return the jobs that schedulers have, of all processes that are alive.

    Args:
        reader: of the history.
        job: those of this name only.
        instance: those of this instance of a service only.

    Raises:
        DatabaseError: the history can't be read.
    """
    with reader.using() as database:
        known = control.list_jobs(database=database) if database is not None else []
    return [one for one in known if job in (None, one.job) and instance in (None, one.instance)]


def ask(
    reader: Reader,
    job_id: str,
    verb: Verb,
    *,
    instance: str | None = None,
    scheduler: str | None = None,
    requested_by: str | None = None,
) -> Command:
    """Ask the scheduler that has a job to do something with it.

    Args:
        reader: of the history.
        job_id: the scheduler's id of the job.
        verb: what.
        instance: of which instance of a service, where several have the job.
        scheduler: which scheduler of it.
        requested_by: who asks.

    Raises:
        UnknownJobError: no scheduler that is alive has such a job.
        DatabaseError: the history can't be written to.
    """
    with reader.using() as database:
        if database is None or "\x00" in job_id:
            raise UnknownJobError(f"no scheduler has a job {job_id[:80]!r}")
        return control.ask(
            job_id, verb, instance=instance, scheduler=scheduler, requested_by=requested_by, database=database
        )


def outcome(reader: Reader, command: Command) -> Command:
    """Return what came of a command so far.

    Raises:
        DatabaseError: the history can't be read.
    """
    with reader.using() as database:
        return control.outcome(command.id, database=database) if database is not None else command


def bury(reader: Reader) -> None:
    """Mark what is lost, so that nothing whose process is gone is told of as running.

    Raises:
        DatabaseError: the history can't be written to.
    """
    with reader.using() as database:
        if database is not None:
            mark_lost(database)
