"""A try of a task that a queue carried: a run of a job, and a message that is received. Of every queue of tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Self

from clew import clock
from clew.catalog import semconv
from clew.catalog.kind import OperationKind
from clew.catalog.metrics import JOB_LATENESS, QUEUE_WAIT
from clew.catalog.operations import JOB
from clew.engine.context import Carried
from clew.engine.metrics import registry
from clew.engine.operation import Linkable
from clew.history import payload
from clew.jobs.occasion import Occasion
from clew.jobs.run import STATUS, JobRun, _scheduled
from clew.queues.message import count_consumed
from clew.queues.record import REDELIVERY_COUNT, keep

EARLIER_TRY: Final = "clew-earlier-try"
"""The header with the carrier of the try that asked for this one."""

TRIGGER: Final = "clew-trigger"
"""The header with the kind of schedule for which the library's scheduler sent the task."""

DUE_AT: Final = "clew-due-at"
"""The header that says when the scheduler should have sent it."""

OUTCOME: Final = "clew.queue.outcome"
"""The attribute that says what a task did with its message: ``retried``, ``ignored``, ``requeued`` or ``rejected``."""

# What became of its message, by what the task says of it, or else by how its run ended
_STATUSES: Final = {
    "retried": "returned",
    "requeued": "returned",
    "rejected": "dead_lettered",
    "ignored": "processed",
    "completed": "processed",
    "cancelled": "returned",
}


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a worker is told of a task that it is to run.

    Attributes:
        carried: the thread of what sent it.
        earlier: the try that asked for this one, or ``None``.
        is_periodic: the library's scheduler sent it, for one of many times.
        trigger: the kind of schedule for which that did, or ``None``.
        due_at: when it should start: its ETA, or when it was sent.
        waited_s: how long it has waited since it was sent, where it could have started at once.
        attempt: the number of this try, from 1.
        run_id: what its record is called, where the worker's main process has said so.
        source: the service that sent it, where that has clew.
    """

    carried: Carried
    earlier: Carried | None
    is_periodic: bool
    trigger: str | None
    due_at: datetime
    waited_s: float | None
    attempt: int
    run_id: str | None = None
    source: str | None


def occasion_of(source: str, task_id: str, told: Told, started_at: datetime) -> Occasion:
    """Return what made a task run.

    Args:
        source: the library, as records name it.
        task_id: the task's id there.
        told: what its message tells.
        started_at: when it starts.
    """
    return Occasion(
        source=source,
        job_id=task_id,
        trigger=told.trigger,
        scheduled_at=told.due_at,
        lateness_s=round(max(0.0, (started_at - told.due_at).total_seconds()), 6),
        attempt=told.attempt,
        run_id=told.run_id,
    )


class TaskRun(JobRun):
    """One try of a task. Made by :meth:`of_task`.

    Attributes:
        body: the task's arguments, for the record of its message.
        told: what its message tells.
    """

    __slots__ = ("body", "told")
    body: Any
    told: Told

    @classmethod
    def of_task(
        cls,
        kind: OperationKind,
        name: str,
        *,
        told: Told,
        occasion: Occasion,
        in_message: Mapping[str, Any],
        earlier: Iterable[Linkable] = (),
    ) -> Self:
        """Return the run of a task.

        Args:
            kind: a run, or how one is told that was not seen.
            name: the task.
            told: what its message tells.
            occasion: what makes it run.
            in_message: the attributes of its message; none where the task runs where it was called.
            earlier: the tries before, but the one that its message tells.
        """
        attributes = {**_scheduled(name, occasion), "clew.job.lateness_s": occasion.lateness_s, **in_message}
        links: list[Linkable] = [*([] if told.earlier is None else [told.earlier]), *earlier]
        if not in_message:
            run = cls(kind, attributes, links=links, occasion=occasion)
        else:
            if told.is_periodic:
                links.insert(0, told.carried)
            run = cls(kind, attributes, parent=told.carried, links=links, root=told.is_periodic, occasion=occasion)
        run.told = told
        return run

    def begin(self, *, start_time_ns: int | None = None) -> None:
        """Start the run and record how long the task waited, or how late it is where it was to wait."""
        super().begin(start_time_ns=start_time_ns)
        self._record_wait()

    async def begin_async(self) -> None:
        """Start the run as :meth:`begin` does; await its record's commit."""
        await super().begin_async()
        self._record_wait()

    def finish(self, error: BaseException | None = None) -> None:
        """End the run, and count its message as consumed."""
        super().finish(error)
        self._keep_message(error)

    async def finish_async(self, error: BaseException | None = None) -> None:
        """End the run as :meth:`finish` does; await that its record is complete."""
        await super().finish_async(error)
        self._keep_message(error)

    def _record_wait(self) -> None:
        if self.context is None or self.kind is not JOB or semconv.MESSAGING_SYSTEM not in self.attributes:
            return
        # Within the run, so that the measurements can lead to its trace
        with Carried(self.context):
            if self.told.waited_s is not None:
                labels = {key: self.attributes[key] for key in QUEUE_WAIT.labels}
                registry.declared(QUEUE_WAIT).record(self.told.waited_s, **labels)
            if self.told.waited_s is None or self.told.is_periodic:
                labels = {"clew.job.name": self.attributes["clew.job.name"]}
                registry.declared(JOB_LATENESS).record(self.occasion.lateness_s or 0.0, **labels)

    def _keep_message(self, error: BaseException | None) -> None:
        if semconv.MESSAGING_SYSTEM not in self.attributes:
            return
        status = _STATUSES.get(str(self.attributes.get(OUTCOME))) or _STATUSES.get(
            str(self.attributes.get(STATUS)), "failed"
        )
        count_consumed(self, given_up=status == "dead_lettered")
        keep(
            self,
            body=self.body,
            error=error,
            direction="received",
            status=status,
            type=payload.text(self.attributes["clew.job.name"], max_bytes=255),
            source=self.told.source,
            message_id=payload.text(self.occasion.job_id, max_bytes=255),
            # A try that was asked for, and one that came again by itself
            attempt=self.told.attempt + int(self.attributes.get(REDELIVERY_COUNT, 0)),
            messages=1,
            duration_s=max(0.0, (clock.monotonic_ns() - self._started_ns) / 1e9),
            wait_s=self.told.waited_s,
            sent_at=self.told.due_at.timestamp() if self.told.waited_s is not None else None,
        )
