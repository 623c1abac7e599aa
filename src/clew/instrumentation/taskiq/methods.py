"""The methods of taskiq that clew stands around, because no middleware is told of what they know."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import wrapt
from taskiq.exceptions import SendTaskError
from taskiq.kicker import AsyncKicker
from taskiq.receiver.receiver import Receiver
from taskiq.scheduler.scheduler import TaskiqScheduler

from clew.engine.concurrency import parcel
from clew.instrumentation.taskiq.middleware import is_instrumented
from clew.instrumentation.taskiq.running import Trying, trying
from clew.instrumentation.taskiq.sending import Sending, schedule, sending


async def _kiq(wrapped: Callable[..., Any], kicker: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Stand around ``kiq``, which every way of sending goes through: no middleware is told of a send that failed."""
    if not is_instrumented(kicker.broker):
        return await wrapped(*args, **kwargs)
    sent = Sending()
    token = sending.set(sent)
    failed: BaseException | None = None
    try:
        return await wrapped(*args, **kwargs)
    except BaseException as error:
        failed = error.__cause__ if isinstance(error, SendTaskError) and error.__cause__ is not None else error
        raise
    finally:
        sending.reset(token)
        sent.finish(failed)


async def _callback(wrapped: Callable[..., Any], receiver: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Stand around a worker's ``callback``: the run ends here, so that saving the result and the broker's acknowledgement are its."""
    if not is_instrumented(receiver.broker):
        return await wrapped(*args, **kwargs)
    tried = Trying()
    token = trying.set(tried)
    failed: BaseException | None = None
    try:
        return await wrapped(*args, **kwargs)
    except BaseException as error:
        failed = error
        raise
    finally:
        trying.reset(token)
        await tried.finish(failed)


async def _run_task(wrapped: Callable[..., Any], receiver: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Stand around the running of a task: to a process of a pool, taskiq hands it without what is current."""
    target = kwargs.get("target")
    is_handed_over = isinstance(receiver.executor, ProcessPoolExecutor) and not inspect.iscoroutinefunction(target)
    if trying.get() is not None and target is not None and is_handed_over:
        # It has the signature of the task, which taskiq reads
        kwargs = {**kwargs, "target": functools.update_wrapper(parcel(target), target)}
    return await wrapped(*args, **kwargs)


async def _on_ready(wrapped: Callable[..., Any], _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Stand around the scheduler's sending of a task, which alone knows what it is sent for."""
    token = schedule.set(kwargs.get("task", args[1] if len(args) > 1 else None))
    try:
        return await wrapped(*args, **kwargs)
    finally:
        schedule.reset(token)


def stand_around() -> None:
    """Stand around them. Twice is harmless."""
    for kind, method, wrapper in (
        (AsyncKicker, "kiq", _kiq),
        (Receiver, "callback", _callback),
        (Receiver, "run_task", _run_task),
        (TaskiqScheduler, "on_ready", _on_ready),
    ):
        if not isinstance(vars(kind)[method], wrapt.FunctionWrapper):
            wrapt.wrap_function_wrapper(kind, method, wrapper)
