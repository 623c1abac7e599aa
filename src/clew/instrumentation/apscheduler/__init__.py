"""APScheduler 3: each run of a job is an operation, linked to what scheduled it, or its child where it was scheduled once.

APScheduler carries no context, and its executors know a job only by what its store kept of it. So what scheduled a job is kept
with the job, under a key of its own in the job's state: APScheduler without clew ignores it, and a job stored without it loads.

Source: https://apscheduler.readthedocs.io/en/3.x/
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import wrapt
from apscheduler.events import EVENT_ALL, EVENT_JOB_MAX_INSTANCES, EVENT_SCHEDULER_STARTED
from apscheduler.schedulers.base import BaseScheduler

from clew.diagnostics import report
from clew.instrumentation.apscheduler.execution import missed, patch
from clew.instrumentation.apscheduler.thread import MARK, WHERE
from clew.jobs.ending import ending
from clew.jobs.record import the_recorder

T = TypeVar("T")


def instrument(target: T) -> T:
    """Instrument a scheduler in place, before or after it has jobs, running or not. Twice is harmless.

    Args:
        target: a background, blocking, asyncio or any other scheduler of APScheduler 3.

    Raises:
        TypeError: it is no scheduler.

    Example:
        >>> from apscheduler.schedulers.background import BackgroundScheduler
        >>> scheduler = instrument(BackgroundScheduler())
    """
    if not isinstance(target, BaseScheduler):
        raise TypeError(f"a {type(target).__qualname__} is no APScheduler scheduler")
    if MARK in vars(target):
        return target
    patch()
    vars(target)[MARK] = True
    known = weakref.ref(target)

    def overlapped(event: Any) -> None:
        scheduler: Any = known()
        job = scheduler.get_job(event.job_id, event.jobstore) if scheduler is not None else None
        for run_time in event.scheduled_run_times if job is not None else ():
            missed(job, run_time, "overlap")

    target.add_listener(overlapped, EVENT_JOB_MAX_INSTANCES)
    _show(target)
    # After the history, and so ended before it
    ending.arm()
    return target


def _show(scheduler: Any) -> None:
    """Have the history show what a scheduler has, where there is a history."""
    # Now rather than in the first run, which might overlap the second for it
    if the_recorder() is None:
        return
    from clew.instrumentation.apscheduler.scheduler import ShownScheduler
    from clew.jobs.schedule import schedules

    shown = ShownScheduler(scheduler)
    name = schedules.add(type(scheduler).__name__, shown, owner=scheduler)

    def changed(event: Any) -> None:
        if event.code == EVENT_SCHEDULER_STARTED:
            shown.started()
            # In a child that was forked before, what keeps the history is still to be started
            the_recorder()
        schedules.changed(name)

    scheduler.add_listener(changed, EVENT_ALL)


def instrument_all() -> None:
    """Instrument every scheduler that the app makes from now on. Twice is harmless."""
    if isinstance(vars(BaseScheduler)["__init__"], wrapt.FunctionWrapper):
        return

    def made(wrapped: Callable[..., None], scheduler: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        wrapped(*args, **kwargs)
        try:
            instrument(scheduler)
        except Exception as error:
            report(WHERE, error)

    wrapt.wrap_function_wrapper(BaseScheduler, "__init__", made)
