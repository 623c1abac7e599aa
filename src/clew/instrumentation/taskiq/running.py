"""A try of a task by a worker: a run of a job, and a message that is received."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Any, Final

from opentelemetry import context as otel_context
from taskiq.abc.broker import AsyncBroker
from taskiq.exceptions import NoResultError, TaskRejectedError
from taskiq.message import TaskiqMessage
from taskiq.result import TaskiqResult

from clew import clock
from clew.catalog import semconv
from clew.catalog.operations import JOB
from clew.instrumentation.task_run import EARLIER_TRY, OUTCOME, TaskRun, occasion_of
from clew.instrumentation.taskiq.message import REQUEUES, destination, number, system, told_by
from clew.jobs.run import STATUS
from clew.queues.record import REDELIVERY_COUNT


class Trying:
    """One call of a worker's ``callback``: a try of a task, if it knows the task."""

    __slots__ = ("_is_judged", "_requeues", "_run", "_token", "error", "retried", "task_id")

    def __init__(self) -> None:
        self._run: TaskRun | None = None
        self._token: Token[Any] | None = None
        self._requeues: Any = None
        self._is_judged = False
        self.error: BaseException | None = None
        self.retried = False
        self.task_id: str | None = None

    async def begin(self, broker: AsyncBroker, message: TaskiqMessage) -> None:
        """Begin the run and make it current."""
        started_at = clock.utc_now()
        labels = message.labels
        told = told_by(labels, started_at)
        in_message: dict[str, Any] = {
            semconv.MESSAGING_SYSTEM: system(broker),
            semconv.MESSAGING_DESTINATION_NAME: destination(broker, labels),
        }
        self._requeues = labels.get(REQUEUES)
        if requeues := number(self._requeues):
            in_message[REDELIVERY_COUNT] = requeues
        occasion = occasion_of("taskiq", message.task_id, told, started_at)
        run = TaskRun.of_task(JOB, message.task_name, told=told, occasion=occasion, in_message=in_message)
        run.body = {"args": list(message.args), "kwargs": dict(message.kwargs)}
        await run.begin_async()
        self._run, self.task_id = run, message.task_id
        self._token = run.attach()
        if (carrier := run.carrier.get("traceparent")) is not None:
            # What asks for another try hands the labels on, and so does what gives the message back
            labels[EARLIER_TRY] = carrier

    def judge(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """Say by what taskiq tells how the try has ended."""
        run, error, self._is_judged = self._run, self.error, True
        if run is None:
            return
        if error is None:
            run.take_returned(result.return_value)
        elif isinstance(error, NoResultError):
            requeued = message.labels.get(REQUEUES) != self._requeues
            run.set(OUTCOME, "requeued" if requeued else "ignored")
            run.set(STATUS, "cancelled")
            self.error = None
        elif isinstance(error, TaskRejectedError):
            run.set(OUTCOME, "rejected")
        elif self.retried or isinstance(result.error, NoResultError):
            run.set(OUTCOME, "retried")

    async def finish(self, broken_off_by: BaseException | None) -> None:
        """End the run, where one has begun."""
        # What becomes of the result afterwards is not the task's to answer for
        error = self.error if self._is_judged else broken_off_by or self.error
        run, self._run = self._run, None
        if self._token is not None:
            otel_context.detach(self._token)
            self._token = None
        if run is not None:
            await run.finish_async(error)


trying: Final[ContextVar[Trying | None]] = ContextVar("clew_taskiq_trying", default=None)
"""What is being tried."""
