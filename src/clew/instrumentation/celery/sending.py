"""Sending tasks: a producer span around the call of the broker, and the thread in the headers of the task's message.

Celery's signals tell where a message goes and let its headers be written, but not that a broker refused it. So an app's
``send_task``, which every way of sending goes through (calls, chains, groups, chords, retries, beat), is what the span ends with.

Source: https://docs.celeryq.dev/en/stable/userguide/signals.html#task-signals
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import wrapt
from celery import signals
from opentelemetry import context as otel_context
from opentelemetry import propagate

from clew import clock
from clew.catalog import semconv
from clew.diagnostics import report
from clew.instrumentation.celery import running
from clew.instrumentation.celery.application import WHERE, is_instrumented
from clew.instrumentation.celery.message import arguments_of, destination, system_of
from clew.instrumentation.task_run import DUE_AT, EARLIER_TRY, TRIGGER
from clew.queues.message import MessageSend, new_send
from clew.queues.record import TYPE


class _Sending:
    """One call of ``send_task``: the span begins when Celery is about to hand the message to the broker."""

    __slots__ = ("_app", "_operation", "_token")

    def __init__(self, app: Any) -> None:
        self._app = app
        self._operation: MessageSend | None = None
        self._token: Any = None

    def begin(self, name: str, where: str, headers: MutableMapping[str, Any], task_id: str, body: Any) -> None:
        attributes = {semconv.MESSAGING_MESSAGE_ID: task_id, "clew.job.name": name, TYPE: name}
        self._operation = operation = new_send(system_of(self._app), where, attributes)
        operation.body = body
        operation.begin()
        self._token = operation.attach()
        # A retry has the headers of the try that asked for it
        for key in (*propagate.get_global_textmap().fields, EARLIER_TRY, TRIGGER, DUE_AT):
            headers.pop(key, None)
        headers.update(operation.headers())
        if (earlier := running.carrier_of(task_id)) is not None:
            headers[EARLIER_TRY] = earlier
        if (entry := _beat_entry.get()) is not None:
            headers.update(_of_entry(entry))

    @property
    def has_begun(self) -> bool:
        return self._operation is not None

    def finish(self, error: BaseException | None) -> None:
        operation, self._operation = self._operation, None
        if self._token is not None:
            otel_context.detach(self._token)
        if operation is not None:
            operation.finish(error)


_under_way: ContextVar[_Sending | None] = ContextVar("clew_celery_sending", default=None)
# The entry of beat's schedule whose task is being sent
_beat_entry: ContextVar[Any] = ContextVar("clew_celery_beat_entry", default=None)


def send_task(wrapped: Callable[..., Any], app: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Stand around an app's ``send_task``."""
    sending = _Sending(app)
    token = _under_way.set(sending)
    try:
        result = wrapped(*args, **kwargs)
    except BaseException as error:
        sending.finish(error)
        raise
    finally:
        _under_way.reset(token)
    sending.finish(None)
    return result


def _publishing(
    sender: Any = None,
    body: Any = None,
    exchange: Any = None,
    routing_key: Any = None,
    headers: Any = None,
    **_: Any,
) -> None:
    sending = _under_way.get()
    if sending is None or sending.has_begun or not isinstance(headers, MutableMapping):
        return
    try:
        # The older protocol has nothing but the app's own in its headers
        known = body if isinstance(body, Mapping) else headers
        sending.begin(
            str(sender), destination(exchange, routing_key), headers, str(known.get("id")), arguments_of(body)
        )
    except Exception as error:
        report(WHERE, error)


# Beat


def _beat_starts(sender: Any = None, **_: Any) -> None:
    try:
        if is_instrumented(sender.app):
            wrapt.wrap_function_wrapper(sender.scheduler, "apply_async", _sent_by_beat)
    except Exception as error:
        report(WHERE, error)


def _sent_by_beat(wrapped: Callable[..., Any], _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Stand around beat's sending of a task, which alone knows the schedule that it is sent for."""
    token = _beat_entry.set(args[0] if args else kwargs.get("entry"))
    try:
        return wrapped(*args, **kwargs)
    finally:
        _beat_entry.reset(token)


def _of_entry(entry: Any) -> dict[str, str]:
    """Return what a message says of the entry of beat's schedule that it was sent for."""
    kind = type(entry.schedule).__name__
    told = {TRIGGER: "interval" if kind == "schedule" else kind}
    try:
        due_in_s = entry.schedule.remaining_estimate(entry.last_run_at).total_seconds()
        if due_in_s <= 0:
            told[DUE_AT] = datetime.fromtimestamp(clock.now_ns() / 1e9 + due_in_s, UTC).isoformat()
    except Exception:
        # A schedule of the app's own may not tell: then it was due when it was sent
        return told
    return told


def connect() -> None:
    """Listen to what Celery is about to send. Twice is harmless."""
    signals.before_task_publish.connect(_publishing, weak=False, dispatch_uid="clew")
    signals.beat_init.connect(_beat_starts, weak=False, dispatch_uid="clew")
