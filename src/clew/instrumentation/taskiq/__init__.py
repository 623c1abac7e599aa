"""taskiq: a producer span for each task that is sent, and a run, as of any job, for each try of a worker.

By taskiq's own middleware, and around four methods that it calls none for: ``AsyncKicker.kiq``, for the sends that fail,
``Receiver.callback``, because a try is over when its result is saved or another middleware has broken it off, ``Receiver.run_task``,
for the processes of its pool, and ``TaskiqScheduler.on_ready``, for the schedule.

Source: https://taskiq-python.github.io/extending-taskiq/middleware.html
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import wrapt
from taskiq.abc.broker import AsyncBroker

from clew.diagnostics import report
from clew.instrumentation.taskiq.methods import stand_around
from clew.instrumentation.taskiq.middleware import WHERE, ClewMiddleware, is_instrumented

T = TypeVar("T")


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
    stand_around()
    if not is_instrumented(broker):
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
