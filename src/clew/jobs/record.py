"""The durable record of a run: its row in the history, written when it starts and completed when it ends. Never raises."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from clew import clock
from clew.diagnostics import report
from clew.engine import runtime
from clew.engine.state import state
from clew.history import payload
from clew.history.failure import error_columns
from clew.history.ids import new_id

if TYPE_CHECKING:
    from concurrent.futures import Future

    from clew.history.recorder import Recorder
    from clew.history.writing import Change, Verb
    from clew.jobs.occasion import Occasion

TABLE: Final = "job_runs"
_MAX_TRIGGER_BYTES: Final = 64
# What has columns of its own
_OWN: Final = frozenset(
    {
        "clew.job.name",
        "clew.job.id",
        "clew.job.trigger",
        "clew.job.scheduled_at",
        "clew.job.lateness_s",
        "clew.job.attempt",
        "clew.job.status",
        "user.id",
        "error.type",
    }
)


class RunRecord:
    """The row of one run.

    Args:
        recorder: writes it.
        job: the job's name.
        occasion: what made it run.

    Attributes:
        id: the row's.
        job: the job's name, as the row has it.
        progress: how much is done, from 0 to 1, where the job says so.
    """

    __slots__ = ("_recorder", "_row", "id", "job", "progress")

    def __init__(self, recorder: Recorder, job: str, occasion: Occasion) -> None:
        origin = recorder.origin
        self._recorder = recorder
        self.id = occasion.run_id or new_id()
        self.job = payload.name(job) or ""
        self.progress: float | None = None
        self._row: dict[str, Any] = {
            "id": self.id,
            "job": self.job,
            "job_id": payload.name(occasion.job_id),
            "job_key": occasion.job_key,
            "source": occasion.source,
            "trigger": payload.text(occasion.trigger, max_bytes=_MAX_TRIGGER_BYTES),
            "scheduled_at": occasion.scheduled_at,
            "lateness_s": occasion.lateness_s,
            "attempt": occasion.attempt,
            "user_id": payload.name(occasion.user_id),
            "host": payload.name(origin.host),
            "pid": origin.pid,
            "process_started_at": origin.process_started_at,
            "process_key": payload.name(origin.process_key),
            "heartbeat_s": recorder.settings.heartbeat_s,
        }

    @property
    def started_at(self) -> datetime | None:
        """When the run started."""
        return self._row.get("started_at")

    def started(self, attributes: Mapping[str, Any], thread: Mapping[str, str | None]) -> Change:
        """Return the row of a run that starts now.

        Args:
            attributes: of the run.
            thread: its ``trace_id``, ``span_id`` and ``correlation_id``.
        """
        now = clock.utc_now()
        self._row |= self._recorder.row(**thread)
        self._row |= {
            "status": "running",
            "started_at": now,
            "heartbeat_at": now,
            "metadata": self._metadata(attributes),
        }
        return self._change("record")

    def ended(self, status: str, attributes: Mapping[str, Any], **columns: Any) -> Change:
        """Return the row of a run that ends now, or did not start.

        Args:
            status: how.
            attributes: of the run.
            columns: ``duration_s``, ``result`` and what is known of its error.
        """
        started_at = self.started_at
        # The wall clock may have been set back meanwhile
        now = clock.utc_now() if started_at is None else max(clock.utc_now(), started_at)
        self._row |= {
            "status": status,
            "finished_at": now,
            # The last sign of life
            "heartbeat_at": now,
            "progress": self.progress,
            "metadata": self._metadata(attributes),
            **columns,
        }
        return self._change("end")

    def not_started(self, status: str, attributes: Mapping[str, Any], thread: Mapping[str, str | None]) -> Change:
        """Return the row of a run that was due and did not start."""
        self._row |= self._recorder.row(**thread)
        return self.ended(status, attributes)

    def taken_over(self, pid: int | None, started_at: datetime | None, thread: Mapping[str, str | None]) -> None:
        """Know the run for one of another process of this host, which can't end it any more."""
        self._row |= self._recorder.row(**thread)
        self._row |= {"pid": pid, "started_at": started_at}
        for column in ("process_started_at", "process_key"):
            self._row.pop(column)

    def wait(self, change: Change) -> None:
        """Commit a row; wait for that unless an event loop would."""
        self._recorder.steer_and_wait(change)

    async def wait_on_loop(self, change: Change) -> None:
        """Commit a row and await that."""
        await self._recorder.steer_and_await(change)

    def send(self, change: Change) -> Future[bool]:
        """Commit a row without waiting."""
        return self._recorder.steer(change)

    def result(self, value: Any) -> Any:
        """Return what is kept of a result."""
        return payload.payload(value, max_bytes=self._recorder.settings.payload_max_bytes, redact=state.redact)

    def error(self, kind: str, message: str | None, error: BaseException | None) -> dict[str, Any]:
        """Return the columns that tell of an error."""
        max_bytes = self._recorder.settings.payload_max_bytes
        return error_columns(kind, message, error, max_bytes=max_bytes, redact=state.redact)

    def _metadata(self, attributes: Mapping[str, Any]) -> Any:
        own = {key: value for key, value in attributes.items() if key not in _OWN}
        return self.result(own) if own else None

    def _change(self, verb: Verb) -> Change:
        from clew.history.writing import Change

        return Change(table=TABLE, row=dict(self._row), verb=verb)


def new_record(job: str, occasion: Occasion) -> RunRecord | None:
    """Return a record for a run; ``None`` where the history is switched off or can't be used."""
    try:
        found = the_recorder()
        return RunRecord(found, job, occasion) if found is not None else None
    except Exception as error:
        report("job history", error)
        return None


def the_recorder() -> Recorder | None:
    """Return what writes this process's records; ``None`` where the history is switched off or can't be used."""
    settings = runtime.ready().settings
    if settings is None or not settings.history:
        return None
    # SQLAlchemy is imported by the first run, not with clew
    from clew.jobs import upkeep

    return upkeep.the_recorder()
