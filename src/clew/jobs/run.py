"""A run of a job: ``clew.job`` as a context manager and a decorator, and the runs that a scheduler starts, or does not."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

from opentelemetry.context import Context

from clew import clock
from clew.catalog.metrics import JOB_LATENESS, JOB_MISFIRES
from clew.catalog.operations import JOB, JOB_NOT_RUN
from clew.engine.context import Carried, extract
from clew.engine.metrics import registry
from clew.engine.operation import Operation

STATUS: Final = "clew.job.status"

MisfireReason = Literal["late", "overlap"]
_STATUSES: Final[dict[MisfireReason, str]] = {"late": "missed", "overlap": "skipped"}


class JobRun(Operation):
    """A run of a job, with a status: ``completed``, ``failed`` or ``cancelled``. Made by :func:`job`."""

    __slots__ = ()

    def finish(self, error: BaseException | None = None) -> None:
        """End the run and give it its status."""
        if STATUS not in self.attributes:
            if isinstance(error, Exception) or self.error_type is not None:
                status = "failed"
            else:
                status = "completed" if error is None or isinstance(error, GeneratorExit) else "cancelled"
            self.set(STATUS, status)
        super().finish(error)

    def misfire(self, reason: MisfireReason) -> None:
        """End the run as one that did not start, and count it."""
        self.set(STATUS, _STATUSES[reason])
        self.finish()
        labels = {"clew.job.name": self.attributes["clew.job.name"], "clew.job.misfire.reason": reason}
        registry.declared(JOB_MISFIRES).add(1, **labels)


class ScheduledRun(JobRun):
    """A run that a scheduler started, perhaps late. Made by :func:`scheduled_run`."""

    __slots__ = ()

    def begin(self, *, start_time_ns: int | None = None) -> None:
        """Start the run and record how late it is."""
        super().begin(start_time_ns=start_time_ns)
        if self.context is not None:
            # Within the run, so that the measurement can lead to its trace
            with Carried(self.context):
                labels = {"clew.job.name": self.attributes["clew.job.name"]}
                registry.declared(JOB_LATENESS).record(self.attributes["clew.job.lateness_s"], **labels)


def job(name: str, /, *, user_id: str | None = None, **metadata: Any) -> JobRun:
    """Trace and measure a run of a job, scheduled or not.

    A run that is started within a trace belongs to it.

    Args:
        name: the job, of low cardinality.
        user_id: who asked for it.
        metadata: attributes of the run.

    Example:
        >>> import clew
        >>> with clew.job("digest", topics=3) as run:
        ...     run.set("sent", 12)
        >>> @clew.job("cleanup")
        ... def cleanup(): ...
    """
    attributes: dict[str, Any] = {"clew.job.name": str(name), **metadata}
    if user_id is not None:
        attributes["user.id"] = user_id
    return JobRun(JOB, attributes)


def scheduled_run(
    name: str,
    *,
    due_at: datetime,
    carrier: Mapping[Any, Any] | None,
    continues: bool,
    attributes: Mapping[str, Any] | None = None,
) -> ScheduledRun:
    """Return a run that a scheduler starts now, for the scheduler's instrumentation.

    Args:
        name: the job, of low cardinality.
        due_at: when it should have started, with a time zone.
        carrier: the thread of what scheduled it, or ``None``.
        continues: the run belongs to that trace (a one-shot job); otherwise it has one of its own that links there.
        attributes: more attributes of the run.

    Example:
        >>> with scheduled_run("digest", due_at=datetime.now(UTC), carrier=None, continues=False) as run:
        ...     run.set("sent", 12)
    """
    lateness_s = max(0.0, (clock.utc_now() - due_at).total_seconds())
    given = {**_scheduled(name, due_at, attributes), "clew.job.lateness_s": round(lateness_s, 6)}
    carried = extract(carrier)
    continues = continues and carried.span_context.is_valid
    links = () if continues else (carried,)
    # What is current where a scheduler wakes up is whatever last touched the scheduler: it is no parent
    return ScheduledRun(JOB, given, parent=carried, links=links, root=not continues)


def missed_run(
    name: str,
    *,
    due_at: datetime,
    carrier: Mapping[Any, Any] | None,
    reason: MisfireReason,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Record a run that was due and that the scheduler did not start.

    Args:
        name: the job, of low cardinality.
        due_at: when it should have started, with a time zone.
        carrier: the thread of what scheduled it, or ``None``.
        reason: ``late`` (status ``missed``) or ``overlap`` (status ``skipped``).
        attributes: more attributes of the run.

    Example:
        >>> missed_run("digest", due_at=datetime.now(UTC), carrier=None, reason="overlap")
    """
    carried = extract(carrier) if carrier else Carried(Context())
    run = JobRun(JOB_NOT_RUN, _scheduled(name, due_at, attributes), parent=carried, links=(carried,), root=True)
    run.begin()
    run.misfire(reason)


def _scheduled(name: str, due_at: datetime, attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        "clew.job.name": str(name),
        "clew.job.scheduled_at": due_at.astimezone(UTC).isoformat(),
        **(attributes or {}),
    }
