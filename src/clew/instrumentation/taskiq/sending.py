"""A task that is sent: a producer span."""

from __future__ import annotations

from contextvars import ContextVar, Token
from typing import Any, Final

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from taskiq.abc.broker import AsyncBroker
from taskiq.message import TaskiqMessage

from clew.catalog import semconv
from clew.engine.context import extract
from clew.instrumentation.task_run import DUE_AT, EARLIER_TRY, TRIGGER
from clew.instrumentation.taskiq.message import destination, of_schedule, system
from clew.queues.message import MessageSend, new_send
from clew.queues.record import TYPE


class Sending:
    """One call of ``kiq``: the span begins with the first middleware, and ends when the broker has the message."""

    __slots__ = ("_operation", "_token")

    def __init__(self) -> None:
        self._operation: MessageSend | None = None
        self._token: Token[Any] | None = None

    def begin(self, broker: AsyncBroker, message: TaskiqMessage) -> None:
        """Begin the span, and write the thread into the message's labels."""
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
        self._operation = operation = new_send(system(broker), destination(broker, labels), attributes, parent=parent)
        operation.body = {"args": message.args, "kwargs": message.kwargs}
        operation.begin()
        self._token = operation.attach()
        # Another try has the labels of the one that asked for it
        for key in (*propagate.get_global_textmap().fields, TRIGGER, DUE_AT):
            labels.pop(key, None)
        labels.update(operation.headers())
        if (due := schedule.get()) is not None:
            labels.update(of_schedule(due))

    def finish(self, error: BaseException | None) -> None:
        """End the span, where one has begun."""
        operation, self._operation = self._operation, None
        if self._token is not None:
            otel_context.detach(self._token)
            self._token = None
        if operation is not None:
            operation.finish(error)


sending: Final[ContextVar[Sending | None]] = ContextVar("clew_taskiq_sending", default=None)
"""What is being sent."""

schedule: Final[ContextVar[Any]] = ContextVar("clew_taskiq_schedule", default=None)
"""What the scheduler sends a task for."""
