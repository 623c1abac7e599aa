"""Messages that a worker can make no task of: each is counted and recorded as rejected, where its task would have been run.

A worker throws such a message away, or ends because of it: what is JSON but no list of arguments, it does not expect. For tasks that
it does not know, and messages that name none, Celery has signals; for what can't be decoded and for what ends it, it has not.

Source: https://docs.celeryq.dev/en/stable/userguide/signals.html#task-unknown
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import wrapt
from celery import signals
from celery.exceptions import InvalidTaskError, NotRegistered

from clew.catalog import semconv
from clew.diagnostics import report
from clew.history import payload
from clew.instrumentation.celery.application import WHERE, is_instrumented
from clew.instrumentation.celery.message import arguments_of, destination, system_of
from clew.instrumentation.task_run import OUTCOME
from clew.queues.message import new_process
from clew.queues.record import REDELIVERY_COUNT, TYPE

_MAX_BYTES = 255


def _is_unknown(sender: Any = None, message: Any = None, name: Any = None, **_: Any) -> None:
    _reject(sender, message, NotRegistered(str(name)))


def _is_rejected(sender: Any = None, message: Any = None, exc: Any = None, **_: Any) -> None:
    _reject(sender, message, exc or InvalidTaskError("the message names no task"))


def _cannot_decode(wrapped: Callable[..., Any], consumer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Stand around what a worker does with a message that can't be decoded."""
    given = dict(zip(("message", "exc"), args, strict=False)) | kwargs
    _reject(consumer, given.get("message"), given.get("exc"))
    return wrapped(*args, **kwargs)


def _made_handler(wrapped: Callable[..., Any], consumer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Stand around what a worker does with each message, for the one that ends it."""
    handler = wrapped(*args, **kwargs)
    if not is_instrumented(getattr(consumer, "app", None)):
        return handler

    def handle(message: Any) -> Any:
        try:
            return handler(message)
        except Exception as error:
            if not _has_arguments(message):
                _reject(consumer, message, error)
            raise

    return handle


def _has_arguments(message: Any) -> bool:
    """Tell whether a message has what Celery looks for in it; a worker has other reasons to end than what it reads."""
    try:
        found = message.payload
    except Exception:
        return False
    return isinstance(found, Mapping) or (isinstance(found, (list, tuple)) and len(found) == 3)


def _reject(consumer: Any, message: Any, error: Any) -> None:
    try:
        app = getattr(consumer, "app", None)
        if not is_instrumented(app) or getattr(message, "_clew_rejected", False):
            return
        # It may be told again, by the loss of the connection while it is acknowledged
        message._clew_rejected = True
        headers = message.headers if isinstance(message.headers, Mapping) else {}
        delivery = message.delivery_info if isinstance(message.delivery_info, Mapping) else {}
        attributes: dict[str, Any] = {OUTCOME: "rejected"}
        for key, header in ((semconv.MESSAGING_MESSAGE_ID, "id"), (TYPE, "task")):
            if isinstance(value := headers.get(header), str):
                attributes[key] = payload.text(value, max_bytes=_MAX_BYTES)
        if delivery.get("redelivered"):
            attributes[REDELIVERY_COUNT] = 1
        root_id = headers.get("root_id")
        processing = new_process(
            system_of(app),
            destination(delivery.get("exchange"), delivery.get("routing_key")),
            headers,
            attributes,
            correlation_id=root_id if isinstance(root_id, str) else None,
        )
        processing.body = arguments_of(message.payload) if _has_arguments(message) else message.body
        processing.begin()
        processing.reject(error if isinstance(error, BaseException) else InvalidTaskError(str(error)))
    except Exception as problem:
        report(WHERE, problem)


def _worker_starts(sender: Any = None, **_: Any) -> None:
    try:
        if is_instrumented(getattr(sender, "app", None)):
            # Who only sends tasks need not import it
            from celery.worker.consumer import Consumer

            for name, around in (("on_decode_error", _cannot_decode), ("create_task_handler", _made_handler)):
                if not isinstance(vars(Consumer)[name], wrapt.FunctionWrapper):
                    wrapt.wrap_function_wrapper(Consumer, name, around)
    except Exception as error:
        report(WHERE, error)


def connect() -> None:
    """Listen to what workers can't read. Twice is harmless."""
    for source, receiver in (
        (signals.worker_init, _worker_starts),
        (signals.task_unknown, _is_unknown),
        (signals.task_rejected, _is_rejected),
    ):
        source.connect(receiver, weak=False, dispatch_uid="clew-rejection")
