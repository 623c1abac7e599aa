"""What others ask the schedulers of this process to do, through the history: taken once, done here, and answered."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, Row, Table, select, update

from clew import clock
from clew.history import payload
from clew.history.models import JobCommand
from clew.jobs.schedule import Scheduler, full_name, schedules

if TYPE_CHECKING:
    from clew.history.recorder import Recorder

EXPIRY: Final = timedelta(minutes=1)
TAKEN: Final = "taken"
_MAX_OUTCOME_BYTES: Final = 1_024
_TABLE: Final[Table] = JobCommand.__table__  # type: ignore[assignment]


def take(connection: Connection, recorder: Recorder) -> None:
    """Do what is asked of the schedulers of this process.

    Args:
        connection: to look with.
        recorder: whose database it is, and whose process has the schedulers.
    """
    known = {full_name(name): scheduler for name, scheduler in schedules.all().items()}
    if not known:
        return
    own = (_TABLE.c.instance == recorder.origin.instance) & _TABLE.c.scheduler.in_(known)
    query = select(_TABLE).where(own, _TABLE.c.done_at.is_(None)).order_by(_TABLE.c.id).limit(100)
    for command in connection.execute(query).all():
        if _claim(command, recorder):
            outcome = _do(command, known[command.scheduler])
            _settle(command, recorder, outcome)


def _claim(command: Row[Any], recorder: Recorder) -> bool:
    unclaimed = update(_TABLE).where(_TABLE.c.id == command.id, _TABLE.c.done_at.is_(None))
    with recorder.database.write() as connection:
        claimed = connection.execute(unclaimed.values(done_at=clock.utc_now(), outcome=TAKEN))
        return bool(claimed.rowcount == 1)


def _settle(command: Row[Any], recorder: Recorder, outcome: str) -> None:
    settled = update(_TABLE).where(_TABLE.c.id == command.id)
    with recorder.database.write() as connection:
        text = payload.text(outcome, max_bytes=_MAX_OUTCOME_BYTES)
        connection.execute(settled.values(done_at=clock.utc_now(), outcome=text))


def _do(command: Row[Any], scheduler: Scheduler) -> str:
    if clock.utc_now() - command.requested_at > EXPIRY:
        return "refused: it was asked for more than a minute ago"
    return do(scheduler, command.verb, command.job_id, command.requested_by)


def do(scheduler: Scheduler, verb: Any, job_id: str, requested_by: str | None) -> str:
    """Do something with a job, and return what came of it, in words.

    Args:
        scheduler: has the job.
        verb: what.
        job_id: its id there.
        requested_by: who asked for it.
    """
    try:
        return f"done: {scheduler.do(verb, job_id, requested_by)}"
    except LookupError:
        return "refused: there is no such job any more"
    except RuntimeError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"failed: {type(error).__qualname__}: {error}"
