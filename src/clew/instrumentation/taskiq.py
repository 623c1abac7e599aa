"""taskiq: a producer span for each task that is sent, and a run, as of any job, for each try of a worker.

By taskiq's own middleware, and around three methods that it calls none for: ``AsyncKicker.kiq``, for the sends that fail,
``Receiver.callback``, because a try is over when its result is saved or another middleware has broken it off, and ``TaskiqScheduler.on_ready``, for the schedule.

Source: https://taskiq-python.github.io/extending-taskiq/middleware.html
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import wrapt
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from taskiq.abc.broker import AsyncBroker
from taskiq.abc.middleware import TaskiqMiddleware
from taskiq.exceptions import NoResultError, SendTaskError, TaskRejectedError
from taskiq.kicker import AsyncKicker
from taskiq.message import TaskiqMessage
from taskiq.receiver.receiver import Receiver
from taskiq.result import TaskiqResult
from taskiq.scheduler.scheduler import TaskiqScheduler

from clew import clock
from clew.catalog import semconv
from clew.catalog.operations import JOB
from clew.diagnostics import report
from clew.engine.context import extract
from clew.instrumentation.task_run import DUE_AT, EARLIER_TRY, OUTCOME, TRIGGER, TaskRun, Told, occasion_of
from clew.jobs.run import STATUS
from clew.queues.message import (
    SENT_AT_HEADER,
    SOURCE_HEADER,
    TYPE_HEADER,
    USER_HEADER,
    MessageSend,
    header_of,
    new_send,
    waited_s,
)
from clew.queues.record import REDELIVERY_COUNT, TYPE

T = TypeVar("T")

WHERE: Final = "instrument taskiq"

# What says how often a task has been tried, and given back, before
_RETRIES: Final = "_retries"
_REQUEUES: Final = "X-Taskiq-requeue"

_SYSTEMS: Final = {
    "taskiq_aio_kafka": "kafka",
    "taskiq_aio_pika": "rabbitmq",
    "taskiq_aio_sqs": "aws_sqs",
    "taskiq_nats": "nats",
    "taskiq_pg": "postgresql",
    "taskiq_postgres": "postgresql",
    "taskiq_redis": "redis",
    "taskiq_valkey": "redis",
    "taskiq.brokers.inmemory_broker": "memory",
    "taskiq.brokers.zmq_broker": "zeromq",
}
# What the several brokers call where they send to
_DESTINATIONS: Final = ("queue_name", "subject", "kafka_topic", "channel_name")
_PERIODIC: Final = frozenset({"cron", "interval"})
_RIVAL: Final = "OpenTelemetryMiddleware"
_MAX_TRIGGER_LENGTH: Final = 64
_MAX_WAIT_S: Final = 365 * 86_400.0


class _Sending:
    """One call of ``kiq``: the span begins with the first middleware, and ends when the broker has the message."""

    __slots__ = ("_operation", "_token")

    def __init__(self) -> None:
        self._operation: MessageSend | None = None
        self._token: Token[Any] | None = None

    def begin(self, broker: AsyncBroker, message: TaskiqMessage) -> None:
        if self._operation is not None:
            return
        labels = message.labels
        attributes = {
            semconv.MESSAGING_MESSAGE_ID: message.task_id,
            "clew.job.name": message.task_name,
            TYPE: message.task_name,
        }
        parent = None
        if EARLIER_TRY in labels and not trace.get_current_span().get_span_context().is_valid:
            # A try that was put off: whoever sends it now, it goes on where the one before has failed
            parent = extract({**labels, "traceparent": labels[EARLIER_TRY]}).context
        self._operation = operation = new_send(_system(broker), _destination(broker, labels), attributes, parent=parent)
        operation.body = {"args": message.args, "kwargs": message.kwargs}
        operation.begin()
        self._token = operation.attach()
        # Another try has the labels of the one that asked for it
        for key in (*propagate.get_global_textmap().fields, TRIGGER, DUE_AT):
            labels.pop(key, None)
        labels.update(operation.headers())
        if (schedule := _schedule.get()) is not None:
            labels.update(_of_schedule(schedule))

    def finish(self, error: BaseException | None) -> None:
        operation, self._operation = self._operation, None
        if self._token is not None:
            otel_context.detach(self._token)
            self._token = None
        if operation is not None:
            operation.finish(error)


class _Trying:
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
        started_at = clock.utc_now()
        labels = message.labels
        told = _told_by(labels, started_at)
        in_message: dict[str, Any] = {
            semconv.MESSAGING_SYSTEM: _system(broker),
            semconv.MESSAGING_DESTINATION_NAME: _destination(broker, labels),
        }
        self._requeues = labels.get(_REQUEUES)
        if requeues := _number(self._requeues):
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
            requeued = message.labels.get(_REQUEUES) != self._requeues
            run.set(OUTCOME, "requeued" if requeued else "ignored")
            run.set(STATUS, "cancelled")
            self.error = None
        elif isinstance(error, TaskRejectedError):
            run.set(OUTCOME, "rejected")
        elif self.retried or isinstance(result.error, NoResultError):
            run.set(OUTCOME, "retried")

    async def finish(self, broken_off_by: BaseException | None) -> None:
        # What becomes of the result afterwards is not the task's to answer for
        error = self.error if self._is_judged else broken_off_by or self.error
        run, self._run = self._run, None
        if self._token is not None:
            otel_context.detach(self._token)
            self._token = None
        if run is not None:
            await run.finish_async(error)


_sending: ContextVar[_Sending | None] = ContextVar("clew_taskiq_sending", default=None)
_trying: ContextVar[_Trying | None] = ContextVar("clew_taskiq_trying", default=None)
# What the scheduler sends a task for
_schedule: ContextVar[Any] = ContextVar("clew_taskiq_schedule", default=None)


class ClewMiddleware(TaskiqMiddleware):
    """What a broker gets as its first middleware, so that the others work within the spans."""

    def startup(self) -> None:
        """Name OpenTelemetry's middleware, where it is active: every task would have two spans."""
        if any(type(known).__name__ == _RIVAL for known in self.broker.middlewares):
            report(
                WHERE,
                "taskiq's OpenTelemetryMiddleware is active as well, so that every task gets two spans: "
                "take it out, or do not instrument the broker with clew",
            )

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        """Begin the send, and write the thread into the message's labels."""
        sending, trying = _sending.get(), _trying.get()
        try:
            if trying is not None and trying.task_id == message.task_id:
                trying.retried = True
            if sending is not None:
                sending.begin(self.broker, message)
        except Exception as error:
            report(WHERE, error)
        return message

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """Begin the run; taskiq awaits this where it awaits the task, so that what is attached here is current there."""
        try:
            if (trying := _trying.get()) is not None:
                await trying.begin(self.broker, message)
        except Exception as error:
            report(WHERE, error)
        return message

    def on_error(self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException) -> None:
        """Keep what went wrong: a middleware that tries again takes it out of the result."""
        if (trying := _trying.get()) is not None:
            trying.error = exception

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """Say how the run ends once its result is saved, and leave nothing of clew's in the result."""
        try:
            if (trying := _trying.get()) is not None:
                trying.judge(message, result)
            if isinstance(result.labels, Mapping):
                result.labels = {key: value for key, value in result.labels.items() if key not in _labels()}
        except Exception as error:
            report(WHERE, error)


def _labels() -> frozenset[str]:
    """Return the labels that clew writes."""
    return frozenset(
        (
            *propagate.get_global_textmap().fields,
            *(EARLIER_TRY, TRIGGER, DUE_AT, SENT_AT_HEADER, SOURCE_HEADER, TYPE_HEADER, USER_HEADER),
        )
    )


def _told_by(labels: Mapping[str, Any], started_at: datetime) -> Told:
    """Read what a message's labels tell. Whatever a stranger wrote into them, there is an answer."""
    attempt = _number(labels.get(_RETRIES)) + 1
    waiting_s = waited_s(labels)
    trigger, earlier = labels.get(TRIGGER), labels.get(EARLIER_TRY)
    trigger = trigger[:_MAX_TRIGGER_LENGTH] if isinstance(trigger, str) and attempt == 1 else None
    sent_at = started_at if waiting_s is None else started_at - timedelta(seconds=min(waiting_s, _MAX_WAIT_S))
    return Told(
        carried=extract(labels),
        earlier=extract({"traceparent": earlier}) if isinstance(earlier, str) else None,
        is_periodic=trigger in _PERIODIC,
        trigger=trigger,
        due_at=(_moment(labels.get(DUE_AT)) if trigger is not None else None) or sent_at,
        waited_s=waiting_s,
        attempt=attempt,
        source=header_of(labels, SOURCE_HEADER),
    )


def _number(value: Any) -> int:
    try:
        return max(0, min(int(value), (1 << 31) - 2))
    except (TypeError, ValueError, OverflowError):
        return 0


def _moment(value: Any) -> datetime | None:
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None


def _of_schedule(schedule: Any) -> dict[str, str]:
    """Return what a message says of the schedule that it was sent for."""
    now = clock.utc_now()
    if schedule.cron is not None:
        # The scheduler looks at its crons once a minute
        return {TRIGGER: "cron", DUE_AT: now.replace(second=0, microsecond=0).isoformat()}
    if schedule.interval is not None:
        return {TRIGGER: "interval"}
    due_at = _moment(schedule.time)
    return {TRIGGER: "time", **({DUE_AT: due_at.isoformat()} if due_at is not None else {})}


def _system(broker: AsyncBroker) -> str:
    for kind in type(broker).__mro__:
        known = _SYSTEMS.get(kind.__module__) or _SYSTEMS.get(kind.__module__.partition(".")[0])
        if known is not None:
            return known
    return "taskiq"


def _destination(broker: AsyncBroker, labels: Mapping[str, Any]) -> str:
    if isinstance(queue := labels.get("queue_name"), str) and queue:
        return queue
    for attribute in _DESTINATIONS:
        if (found := getattr(broker, attribute, None)) is not None:
            return str(getattr(found, "name", found))
    return "taskiq"


async def _kiq(wrapped: Callable[..., Any], kicker: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Stand around ``kiq``, which every way of sending goes through: no middleware is told of a send that failed."""
    if not _is_instrumented(kicker.broker):
        return await wrapped(*args, **kwargs)
    sending = _Sending()
    token = _sending.set(sending)
    failed: BaseException | None = None
    try:
        return await wrapped(*args, **kwargs)
    except BaseException as error:
        failed = error.__cause__ if isinstance(error, SendTaskError) and error.__cause__ is not None else error
        raise
    finally:
        _sending.reset(token)
        sending.finish(failed)


async def _callback(wrapped: Callable[..., Any], receiver: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Stand around a worker's ``callback``: the run ends here, so that saving the result and the broker's acknowledgement are its."""
    if not _is_instrumented(receiver.broker):
        return await wrapped(*args, **kwargs)
    trying = _Trying()
    token = _trying.set(trying)
    failed: BaseException | None = None
    try:
        return await wrapped(*args, **kwargs)
    except BaseException as error:
        failed = error
        raise
    finally:
        _trying.reset(token)
        await trying.finish(failed)


async def _on_ready(wrapped: Callable[..., Any], _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Stand around the scheduler's sending of a task, which alone knows what it is sent for."""
    token = _schedule.set(kwargs.get("task", args[1] if len(args) > 1 else None))
    try:
        return await wrapped(*args, **kwargs)
    finally:
        _schedule.reset(token)


def _is_instrumented(broker: Any) -> bool:
    return any(isinstance(known, ClewMiddleware) for known in getattr(broker, "middlewares", ()))


def _stand_around() -> None:
    for kind, method, wrapper in (
        (AsyncKicker, "kiq", _kiq),
        (Receiver, "callback", _callback),
        (TaskiqScheduler, "on_ready", _on_ready),
    ):
        if not isinstance(vars(kind)[method], wrapt.FunctionWrapper):
            wrapt.wrap_function_wrapper(kind, method, wrapper)


def instrument(target: T) -> T:
    """Instrument a broker in place: what it sends, and what workers and schedulers do with it. Twice is harmless.

    Args:
        target: a broker, before or after it has tasks and middlewares, or a scheduler, for its broker.

    Raises:
        TypeError: it has no broker.

    Example:
        >>> from taskiq import InMemoryBroker
        >>> broker = instrument(InMemoryBroker())
    """
    broker: Any = target if isinstance(target, AsyncBroker) else getattr(target, "broker", None)
    if not isinstance(broker, AsyncBroker):
        raise TypeError(f"a {type(target).__qualname__} is no taskiq broker and has none")
    _stand_around()
    if not _is_instrumented(broker):
        middleware = ClewMiddleware()
        middleware.set_broker(broker)
        broker.middlewares.insert(0, middleware)
    return target


def instrument_all() -> None:
    """Instrument every broker that is made from now on. Twice is harmless."""
    if isinstance(vars(AsyncBroker)["__init__"], wrapt.FunctionWrapper):
        return

    def made(wrapped: Callable[..., None], broker: AsyncBroker, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        wrapped(*args, **kwargs)
        try:
            instrument(broker)
        except Exception as error:
            report(WHERE, error)

    wrapt.wrap_function_wrapper(AsyncBroker, "__init__", made)
