"""Celery: a producer span for each task that is sent, and a run, as of any job, for each try of a worker.

By Celery's signals, and around two of its methods: an app's ``send_task``, for the sends that fail, and the ``apply_async`` of
beat's scheduler, for the schedule that a task is sent for.

Source: https://docs.celeryq.dev/en/stable/userguide/signals.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import wrapt
from celery import Celery
from celery.local import Proxy

from clew.diagnostics import report
from clew.instrumentation.celery import processes, rejection, running, sending
from clew.instrumentation.celery.application import WHERE, mark, name_rival

__all__ = ["instrument", "instrument_all"]

T = TypeVar("T")


def instrument(target: T) -> T:
    """Instrument an app in place: what it sends, and what workers and beat do with it. Twice is harmless.

    Args:
        target: a Celery app, before or after it is configured and has tasks.

    Raises:
        TypeError: it is none.

    Example:
        >>> from celery import Celery
        >>> app = instrument(Celery("shop", broker="redis://localhost:6379/0"))
    """
    app: Any = target._get_current_object() if isinstance(target, Proxy) else target
    if not isinstance(app, Celery):
        raise TypeError(f"a {type(target).__qualname__} is no Celery app")
    name_rival()
    if mark(app):
        wrapt.wrap_function_wrapper(app, "send_task", sending.send_task)
        for part in (sending, running, rejection, processes):
            part.connect()
    return target


def instrument_all() -> None:
    """Instrument every app that is made from now on. Twice is harmless."""
    if isinstance(vars(Celery)["__init__"], wrapt.FunctionWrapper):
        return

    def made(wrapped: Callable[..., None], app: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        wrapped(*args, **kwargs)
        try:
            instrument(app)
        except Exception as error:
            report(WHERE, error)

    wrapt.wrap_function_wrapper(Celery, "__init__", made)
