"""Runs: APScheduler's own functions that run a job, with an operation around each time that they do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import wrapt
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_EXECUTED, EVENT_JOB_MISSED
from apscheduler.executors import base as executors
from apscheduler.job import Job
from apscheduler.triggers.date import DateTrigger
from opentelemetry import context as otel_context

from clew.diagnostics import report
from clew.engine import runtime
from clew.engine.state import state
from clew.instrumentation.apscheduler.identity import attributes_of, copy_of, name_of, occasion_of, thread_of
from clew.instrumentation.apscheduler.thread import WHERE, is_traced, job_loaded, job_made, job_state, times_found
from clew.jobs.run import JobRun, MisfireReason, missed_run, scheduled_run
from clew.settings import Settings


class _RunJob:
    """APScheduler's ``run_job`` with an operation around each run. Pickled for a process pool, it sets up clew in the child."""

    def __init__(self, original: Callable[..., list[Any]]) -> None:
        self.original = original

    def __call__(self, job: Any, jobstore_alias: str, run_times: list[datetime], logger_name: str) -> list[Any]:
        if not is_traced(job):
            return self.original(job, jobstore_alias, run_times, logger_name)
        events: list[Any] = []
        for run_time in run_times:
            run = _new_run(job, run_time)
            if run is None:
                events += _note_missed(job, self.original(job, jobstore_alias, [run_time], logger_name))
                continue
            run.begin()
            token = run.attach()
            try:
                told = self.original(_punctual(job), jobstore_alias, [run_time], logger_name)
            except BaseException as error:
                _detach(token)
                run.finish(error)
                raise
            _detach(token)
            _end(run, told)
            events += told
        return events

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Settings | None]]:
        return _in_child, (state.settings,)


class _RunCoroutineJob:
    """APScheduler's ``run_coroutine_job`` with an operation around each run."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original

    async def __call__(self, job: Any, jobstore_alias: str, run_times: list[datetime], logger_name: str) -> list[Any]:
        if not is_traced(job):
            unchanged: list[Any] = await self.original(job, jobstore_alias, run_times, logger_name)
            return unchanged
        events: list[Any] = []
        for run_time in run_times:
            run = _new_run(job, run_time)
            if run is None:
                events += _note_missed(job, await self.original(job, jobstore_alias, [run_time], logger_name))
                continue
            try:
                await run.begin_async()
                token = run.attach()
                try:
                    told = await self.original(_punctual(job), jobstore_alias, [run_time], logger_name)
                finally:
                    _detach(token)
            except BaseException as error:
                run.finish(error)
                raise
            # Not awaited: listeners are told no later than they are without clew
            _end(run, told)
            events += told
        return events


def _in_child(settings: Settings | None) -> Callable[..., Any]:
    """Set up clew in the process of a pool, by the settings of the scheduler's, and return what runs jobs there."""
    if state.settings is None and settings is not None:
        runtime.start(settings)
    patch()
    run: Callable[..., Any] = executors.run_job
    return run


def _new_run(job: Any, run_time: datetime) -> JobRun | None:
    """Return the operation of a run; ``None`` when APScheduler is about to leave it out because it is too late."""
    try:
        if job.misfire_grace_time is not None:
            late_by = datetime.now(UTC) - run_time
            if late_by > timedelta(seconds=job.misfire_grace_time):
                return None
        return scheduled_run(
            name_of(job),
            carrier=thread_of(job),
            continues=isinstance(job.trigger, DateTrigger),
            occasion=occasion_of(job, run_time),
            attributes=attributes_of(job),
        )
    except Exception as error:
        report(WHERE, error)
        return None


def _punctual(job: Any) -> Any:
    """Return a job that is not looked at again for being too late: the commit of its record must not make it so."""
    if job.misfire_grace_time is None:
        return job
    punctual = copy_of(job)
    punctual.misfire_grace_time = None
    return punctual


def _end(run: JobRun, events: list[Any]) -> None:
    """End a run by what APScheduler says of it: it catches what the job raises."""
    error: BaseException | None = None
    try:
        for event in events:
            if event.code == EVENT_JOB_ERROR:
                error = event.exception
            elif event.code == EVENT_JOB_EXECUTED:
                run.take_returned(event.retval)
    except Exception as problem:
        report(WHERE, problem)
    run.finish(error)


def _detach(token: Any) -> None:
    if token is not None:
        otel_context.detach(token)


def _note_missed(job: Any, events: list[Any]) -> list[Any]:
    for event in events:
        if event.code == EVENT_JOB_MISSED:
            missed(job, event.scheduled_run_time, "late")
    return events


def missed(job: Any, run_time: datetime, reason: MisfireReason) -> None:
    """Record a run that did not start."""
    try:
        missed_run(name_of(job), carrier=thread_of(job), reason=reason, occasion=occasion_of(job, run_time))
    except Exception as error:
        report(WHERE, error)


def patch() -> None:
    """Have jobs carry what scheduled them, and executors run them as operations. Twice is harmless."""
    if isinstance(executors.run_job, _RunJob):
        return
    wrapt.wrap_function_wrapper(Job, "__init__", job_made)
    wrapt.wrap_function_wrapper(Job, "__getstate__", job_state)
    wrapt.wrap_function_wrapper(Job, "__setstate__", job_loaded)
    wrapt.wrap_function_wrapper(Job, "_get_run_times", times_found)
    for name, wrapper in (("run_job", _RunJob), ("run_coroutine_job", _RunCoroutineJob)):
        original = getattr(executors, name)
        wrapped = wrapper(original)
        # Each executor's module has imported it by name
        for module_name, module in list(sys.modules.items()):
            if module_name.startswith("apscheduler.executors") and getattr(module, name, None) is original:
                setattr(module, name, wrapped)
