"""Running tasks: each try of a worker is a run of a job.

A try begins and ends with Celery's signals in the process that runs it. What is never run there, because it was revoked or has
expired, and what a worker kills there, is told by the worker's main process.

Source: https://docs.celeryq.dev/en/stable/userguide/signals.html#task-signals
"""

from __future__ import annotations

import signal
import sys
import weakref
from collections.abc import Callable, Mapping
from contextvars import Token
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from billiard import common as billiard_common
from celery import signals, states
from celery.exceptions import Reject, Retry, TimeLimitExceeded, WorkerLostError
from opentelemetry import context as otel_context

from clew import clock
from clew.catalog import semconv
from clew.catalog.kind import OperationKind
from clew.catalog.operations import JOB, JOB_CUT_SHORT, JOB_NOT_RUN
from clew.diagnostics import report
from clew.engine.operation import Linkable
from clew.history.ids import new_id
from clew.instrumentation.celery.application import WHERE, is_instrumented
from clew.instrumentation.celery.message import RUN_ID, arguments_of, destination, system_of, told_by
from clew.instrumentation.task_run import OUTCOME, TaskRun, Told, occasion_of
from clew.jobs.earlier import earlier_run
from clew.jobs.occasion import Occasion
from clew.jobs.record import the_recorder
from clew.jobs.run import STATUS
from clew.jobs.running import running
from clew.queues.record import REDELIVERY_COUNT

R = TypeVar("R", bound="TaskRun")

# How much earlier than the child the main process may have begun to count a time limit
_LIMIT_SLACK_S: Final = 0.2


class KilledRun(TaskRun):
    """One try of a task whose process was killed, as the main process tells it: the span is another, the record is the same."""

    __slots__ = ("pid", "started_at")
    pid: int | None
    started_at: datetime | None

    def _keep_end(self, status: str | None, error: BaseException | None, keep: Callable[..., Any]) -> Any:
        record = self._record
        if status is None or record is None:
            return None
        record.taken_over(self.pid, self.started_at, self._thread())
        columns: dict[str, Any] = {}
        if self.started_at is not None:
            columns["duration_s"] = (clock.utc_now() - self.started_at).total_seconds()
        if error is not None and self.error_type is not None:
            columns |= record.error(self.error_type, str(error), None)
        # The loop that the worker's main process runs is not made to wait
        return record.send(record.ended(status, self.attributes, **columns))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Active:
    task_id: str
    run: TaskRun
    token: Token[Any] | None
    entered_ns: int


# How Celery says that a child has died; a task that exits by itself is told of in other words, and has ended its run
_DIED: Final = " Job: "

# The runs of this process, by the identity of the request that Celery made for each
_active: Final[dict[int, _Active]] = {}

# What the main process of a worker has received and not yet done with
_received: Final[weakref.WeakValueDictionary[str, Any]] = weakref.WeakValueDictionary()


def carrier_of(task_id: str) -> dict[str, str] | None:
    """Return the carrier of a task's run in this process; ``None`` where it has none."""
    for active in list(_active.values()):
        if active.task_id == task_id:
            return active.run.carrier
    return None


def _task_run(
    made: type[R],
    task: Any,
    message: Mapping[str, Any],
    kind: OperationKind = JOB,
    started_at: datetime | None = None,
) -> R:
    started_at = started_at or clock.utc_now()
    told = told_by(message, started_at, task.app.timezone)
    occasion = occasion_of("celery", str(message.get("id")), told, started_at)
    in_message: dict[str, Any] = {}
    before: list[Linkable] = []
    if not message.get("is_eager"):
        in_message = _of_message(task.app, message)
        if kind is JOB and REDELIVERY_COUNT in in_message and (link := _delivered_before(occasion, told)) is not None:
            before.append(link)
    run = made.of_task(kind, str(task.name), told=told, occasion=occasion, in_message=in_message, earlier=before)
    run.body = arguments_of(message)
    return run


def _delivered_before(occasion: Occasion, told: Told) -> dict[str, str] | None:
    known_by = told.carried.correlation_id
    if occasion.job_id is None or known_by is None:
        return None
    return earlier_run(occasion.job_id, correlation_id=known_by, attempt=occasion.attempt)


def _of_message(app: Any, message: Mapping[str, Any]) -> dict[str, Any]:
    delivery = message.get("delivery_info")
    delivery = delivery if isinstance(delivery, Mapping) else {}
    attributes: dict[str, Any] = {
        semconv.MESSAGING_SYSTEM: system_of(app),
        semconv.MESSAGING_DESTINATION_NAME: destination(delivery.get("exchange"), delivery.get("routing_key")),
    }
    if delivery.get("redelivered"):
        # Brokers only tell that, not how often
        attributes[REDELIVERY_COUNT] = 1
    return attributes


# In the process that runs a task


def _starts(sender: Any = None, task_id: Any = None, **_: Any) -> None:
    entered_ns = clock.monotonic_ns()
    try:
        if not is_instrumented(sender.app):
            return
        request = sender.request
        run = _task_run(TaskRun, sender, vars(request))
        run.begin()
        _active[id(request)] = _Active(task_id=str(task_id), run=run, token=run.attach(), entered_ns=entered_ns)
    except Exception as error:
        report(WHERE, error)


def _ends(sender: Any = None, retval: Any = None, state: Any = None, **_: Any) -> None:
    try:
        request = sender.request
        active = _active.pop(id(request), None)
        if active is None:
            return
        if active.token is not None:
            otel_context.detach(active.token)
        limit_s = (request.timelimit or (None,))[0] or sender.time_limit
        if state is None and _is_terminated() and _is_over(limit_s, active.entered_ns):
            # The main process ends the run: it does not wait for this one to do so, but kills it
            running.discard(active.run)
            return
        _conclude(active.run, state, retval)
    except Exception as error:
        report(WHERE, error)


def _conclude(run: TaskRun, state: Any, outcome: Any) -> None:
    """End a run by what Celery says of it."""
    error = outcome if isinstance(outcome, BaseException) else None
    if state == states.RETRY and isinstance(outcome, Retry):
        run.set(OUTCOME, "retried")
        # Without an error it is no failure that is tried again: the task is called off until later
        error = outcome.exc if isinstance(outcome.exc, BaseException) else None
        if error is None:
            run.set(STATUS, "cancelled")
    elif state == states.REJECTED and isinstance(outcome, Reject):
        run.set(OUTCOME, "requeued" if outcome.requeue else "rejected")
        if outcome.requeue:
            run.set(STATUS, "cancelled")
            error = None
    elif state == states.IGNORED:
        run.set(OUTCOME, "ignored")
        run.set(STATUS, "cancelled")
        error = None
    elif state == states.SUCCESS:
        run.take_returned(outcome)
    elif state is None:
        # What is no Exception passes through Celery
        error = sys.exc_info()[1]
        if _is_terminated():
            run.interrupt("terminated")
            error = None
    run.finish(error)


def _is_terminated() -> bool:
    """Tell whether a signal is ending this child of a pool."""
    return bool(getattr(billiard_common, "_should_have_exited", (False,))[0])


def _is_over(limit_s: Any, entered_ns: int) -> bool:
    running_s = (clock.monotonic_ns() - entered_ns) / 1e9
    return isinstance(limit_s, (int, float)) and running_s >= limit_s - _LIMIT_SLACK_S


# In the main process of a worker


def _is_received(request: Any = None, **_: Any) -> None:
    try:
        if is_instrumented(request.app):
            # Hands out what the child is told as well
            request.request_dict[RUN_ID] = new_id()
            _received[request.id] = request
    except Exception as error:
        report(WHERE, error)


def _is_cut_short(sender: Any = None, task_id: Any = None, exception: Any = None, **_: Any) -> None:
    """End a run whose process can't: it was killed because it was over its hard limit, or it died."""
    try:
        # A task may raise the like by itself, and ends its run by itself
        if not isinstance(exception, (TimeLimitExceeded, WorkerLostError)) or carrier_of(str(task_id)) is not None:
            return
        # The first time of two that Celery says so
        received = _received.pop(str(task_id), None)
        if isinstance(exception, TimeLimitExceeded):
            _end_killed(sender, received, "failed", exception)
        elif (recorder := the_recorder()) is not None:
            # Who watches the records knows whether the run has ended, and tells of each that is lost once
            recorder.hurry("lost")
        elif _DIED in str(exception):
            _end_killed(sender, received, "lost", exception)
    except Exception as error:
        report(WHERE, error)


def _is_revoked(
    sender: Any = None, request: Any = None, terminated: Any = None, signum: Any = None, expired: Any = None, **_: Any
) -> None:
    try:
        if not is_instrumented(sender.app):
            return
        if not terminated:
            run = _task_run(TaskRun, sender, vars(request), JOB_NOT_RUN)
            run.begin()
            if expired:
                run.misfire("late")
            else:
                run.set(STATUS, "cancelled")
                run.finish()
        elif signum == signal.SIGKILL:
            # Any other signal lets the child end its run
            _end_killed(sender, _received.pop(request.id, None), "cancelled", None)
    except Exception as error:
        report(WHERE, error)


def _end_killed(task: Any, received: Any, status: str, error: Exception | None) -> None:
    if received is None:
        return
    started_s: float | None = received.time_start
    started_at = datetime.fromtimestamp(started_s, UTC) if started_s else None
    run = _task_run(KilledRun, task, received.request_dict, JOB_CUT_SHORT, started_at)
    run.pid, run.started_at = received.worker_pid, started_at
    run.begin(start_time_ns=int(started_s * 1e9) if started_s else None)
    run.set(STATUS, status)
    run.finish(error)


def connect() -> None:
    """Listen to what becomes of tasks. Twice is harmless."""
    for source, receiver in (
        (signals.task_prerun, _starts),
        (signals.task_postrun, _ends),
        (signals.task_received, _is_received),
        (signals.task_failure, _is_cut_short),
        (signals.task_revoked, _is_revoked),
    ):
        source.connect(receiver, weak=False, dispatch_uid="clew")
