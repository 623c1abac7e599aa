"""What a broker gets: taskiq's own middleware, which begins what is sent and tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from taskiq.abc.middleware import TaskiqMiddleware
from taskiq.message import TaskiqMessage
from taskiq.result import TaskiqResult

from clew.diagnostics import report
from clew.instrumentation.taskiq.message import labels
from clew.instrumentation.taskiq.running import trying
from clew.instrumentation.taskiq.sending import sending
from clew.jobs.record import the_recorder

WHERE: Final = "instrument taskiq"
"""What problems of this drop-in are reported for."""

_RIVAL: Final = "OpenTelemetryMiddleware"


class ClewMiddleware(TaskiqMiddleware):
    """What a broker gets as its first middleware, so that the others work within the spans."""

    def startup(self) -> None:
        """Begin a worker's records, and name OpenTelemetry's middleware, where it is active: every task would have two spans."""
        try:
            if self.broker.is_worker_process:
                # It marks what a worker before it has lost, and its first task need not wait for imports
                the_recorder()
        except Exception as error:
            report(WHERE, error)
        if any(type(known).__name__ == _RIVAL for known in self.broker.middlewares):
            report(
                WHERE,
                "taskiq's OpenTelemetryMiddleware is active as well, so that every task gets two spans: "
                "take it out, or do not instrument the broker with clew",
            )

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        """Begin the send, and write the thread into the message's labels."""
        sent, tried = sending.get(), trying.get()
        try:
            if tried is not None and tried.task_id == message.task_id:
                tried.retried = True
            if sent is not None:
                sent.begin(self.broker, message)
        except Exception as error:
            report(WHERE, error)
        return message

    async def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """Begin the run; taskiq awaits this where it awaits the task, so that what is attached here is current there."""
        try:
            if (tried := trying.get()) is not None:
                await tried.begin(self.broker, message)
        except Exception as error:
            report(WHERE, error)
        return message

    def on_error(self, message: TaskiqMessage, result: TaskiqResult[Any], exception: BaseException) -> None:
        """Keep what went wrong: a middleware that tries again takes it out of the result."""
        if (tried := trying.get()) is not None:
            tried.error = exception

    def post_execute(self, message: TaskiqMessage, result: TaskiqResult[Any]) -> None:
        """Say how the run ends once its result is saved, and leave nothing of clew's in the result."""
        try:
            if (tried := trying.get()) is not None:
                tried.judge(message, result)
            if isinstance(result.labels, Mapping):
                result.labels = {key: value for key, value in result.labels.items() if key not in labels()}
        except Exception as error:
            report(WHERE, error)


def is_instrumented(broker: Any) -> bool:
    """Tell whether a broker has it."""
    return any(isinstance(known, ClewMiddleware) for known in getattr(broker, "middlewares", ()))
