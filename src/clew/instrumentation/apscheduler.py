"""APScheduler 3: each run of a job is an operation, linked to what scheduled it, or its child where it was scheduled once.

APScheduler carries no context, and its executors know a job only by what its store kept of it. So what scheduled a job is kept
with the job, under a key of its own in the job's state: APScheduler without clew ignores it, and a job stored without it loads.

Source: https://apscheduler.readthedocs.io/en/3.x/
"""

from __future__ import annotations

import re
import sys
import weakref
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Self, TypeVar

import wrapt
from apscheduler.events import EVENT_JOB_ERROR, EVENT_JOB_MAX_INSTANCES, EVENT_JOB_MISSED
from apscheduler.executors import base as executors
from apscheduler.job import Job
from apscheduler.schedulers.base import BaseScheduler
from apscheduler.triggers.date import DateTrigger
from opentelemetry import context as otel_context

from clew.diagnostics import report
from clew.engine import runtime
from clew.engine.context import inject
from clew.jobs.occasion import Occasion
from clew.jobs.record import the_recorder
from clew.jobs.run import JobRun, missed_run, scheduled_run
from clew.settings import Settings

T = TypeVar("T")

STATE_KEY: Final = "clew"
"""The key of a stored job's state under which the thread of what scheduled it is kept."""

_MARK: Final = "_clew_instrumented"
_GENERATED_ID: Final = re.compile(r"[0-9a-f]{32}")
_MAX_CARRIED: Final = 16
_WHERE: Final = "instrument apscheduler"


class _Carriers:
    """What scheduled the jobs of instrumented schedulers. Jobs have slots and can't be hashed, so they are told by identity."""

    def __init__(self) -> None:
        self._by_identity: dict[int, tuple[weakref.ref[Any], dict[str, str]]] = {}

    def put(self, job: Any, carrier: dict[str, str]) -> None:
        identity = id(job)
        reference = weakref.ref(job, lambda _: self._by_identity.pop(identity, None))
        self._by_identity[identity] = (reference, carrier)

    def get(self, job: Any) -> dict[str, str] | None:
        known = self._by_identity.get(id(job))
        return known[1] if known is not None and known[0]() is job else None


_carriers: Final = _Carriers()


def _is_traced(job: Any) -> bool:
    if _carriers.get(job) is not None:
        return True
    scheduler = getattr(job, "_scheduler", None)
    return scheduler is not None and _MARK in vars(scheduler)


# The state of a job


def _job_made(wrapped: Callable[..., None], job: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    wrapped(*args, **kwargs)
    try:
        if _is_traced(job):
            _carriers.put(job, inject({}))
    except Exception as error:
        report(_WHERE, error)


def _job_state(wrapped: Callable[..., Any], job: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    state = wrapped(*args, **kwargs)
    if isinstance(state, dict) and _is_traced(job):
        # Empty, too: it tells the child of a process pool that the job is traced
        state[STATE_KEY] = _carriers.get(job) or {}
    return state


def _job_loaded(wrapped: Callable[..., None], job: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    wrapped(*args, **kwargs)
    state = args[0] if args else kwargs.get("state")
    carrier = state.get(STATE_KEY) if isinstance(state, dict) else None
    if isinstance(carrier, dict):
        texts = [(key, value) for key, value in carrier.items() if isinstance(key, str) and isinstance(value, str)]
        _carriers.put(job, dict(texts[:_MAX_CARRIED]))


# Running it


class _RunJob:
    """APScheduler's ``run_job`` with an operation around each run. Pickled for a process pool, it sets up clew in the child."""

    def __init__(self, original: Callable[..., list[Any]]) -> None:
        self.original = original

    def __call__(self, job: Any, jobstore_alias: str, run_times: list[datetime], logger_name: str) -> list[Any]:
        if not _is_traced(job):
            return self.original(job, jobstore_alias, run_times, logger_name)
        events: list[Any] = []
        for run_time in run_times:
            run = _begin(job, run_time)
            if run is None:
                events += _note_missed(job, self.original(job, jobstore_alias, [run_time], logger_name))
                continue
            with _Current(run) as current:
                current.events = self.original(job, jobstore_alias, [run_time], logger_name)
            events += current.events
        return events

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Settings | None]]:
        return _in_child, (runtime.state.settings,)


class _RunCoroutineJob:
    """APScheduler's ``run_coroutine_job`` with an operation around each run."""

    def __init__(self, original: Callable[..., Any]) -> None:
        self.original = original

    async def __call__(self, job: Any, jobstore_alias: str, run_times: list[datetime], logger_name: str) -> list[Any]:
        if not _is_traced(job):
            unchanged: list[Any] = await self.original(job, jobstore_alias, run_times, logger_name)
            return unchanged
        events: list[Any] = []
        for run_time in run_times:
            run = _begin(job, run_time)
            if run is None:
                events += _note_missed(job, await self.original(job, jobstore_alias, [run_time], logger_name))
                continue
            with _Current(run) as current:
                current.events = await self.original(job, jobstore_alias, [run_time], logger_name)
            events += current.events
        return events


class _Current:
    """Makes a run current, and ends it by what APScheduler says of it: it catches what the job raises."""

    def __init__(self, run: JobRun) -> None:
        self.run = run
        self.events: list[Any] = []

    def __enter__(self) -> Self:
        self._token = self.run.attach()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if self._token is not None:
            otel_context.detach(self._token)
        try:
            codes = {event.code for event in self.events}
            if EVENT_JOB_MISSED in codes:
                self.run.misfire("late")
                return
            failures = [event.exception for event in self.events if event.code == EVENT_JOB_ERROR]
            self.run.finish(failures[0] if failures else error)
        except Exception as problem:
            report(_WHERE, problem)


def _in_child(settings: Settings | None) -> Callable[..., Any]:
    """Set up clew in the process of a pool, by the settings of the scheduler's, and return what runs jobs there."""
    if runtime.state.settings is None and settings is not None:
        runtime.start(settings)
    _patch()
    run: Callable[..., Any] = executors.run_job
    return run


def _begin(job: Any, run_time: datetime) -> JobRun | None:
    """Start the operation of a run; ``None`` when APScheduler is about to leave it out because it is too late."""
    try:
        if job.misfire_grace_time is not None:
            late_by = datetime.now(UTC) - run_time
            if late_by > timedelta(seconds=job.misfire_grace_time):
                return None
        run = scheduled_run(
            _name(job),
            carrier=_carriers.get(job),
            continues=isinstance(job.trigger, DateTrigger),
            occasion=_occasion(job, run_time),
        )
        run.begin()
    except Exception as error:
        report(_WHERE, error)
        return None
    return run


def _note_missed(job: Any, events: list[Any]) -> list[Any]:
    for event in events:
        if event.code == EVENT_JOB_MISSED:
            _missed(job, event.scheduled_run_time, "late")
    return events


def _missed(job: Any, run_time: datetime, reason: Any) -> None:
    try:
        missed_run(_name(job), carrier=_carriers.get(job), reason=reason, occasion=_occasion(job, run_time))
    except Exception as error:
        report(_WHERE, error)


def _name(job: Any) -> str:
    """Return a job's name of low cardinality.

    A job's id where the app chose it; the function's name where APScheduler made the id up, and for a job that runs once,
    whose id tells one request from another.
    """
    if isinstance(job.trigger, DateTrigger) or _GENERATED_ID.fullmatch(job.id):
        reference = job.func_ref or getattr(job.func, "__qualname__", type(job.func).__qualname__)
        return str(reference.rpartition(":")[2])
    return str(job.id)


def _occasion(job: Any, run_time: datetime) -> Occasion:
    trigger = type(job.trigger).__name__.removesuffix("Trigger").lower()
    return Occasion(source="apscheduler", job_id=job.id, trigger=trigger, scheduled_at=run_time)


def _patch() -> None:
    if isinstance(executors.run_job, _RunJob):
        return
    wrapt.wrap_function_wrapper(Job, "__init__", _job_made)
    wrapt.wrap_function_wrapper(Job, "__getstate__", _job_state)
    wrapt.wrap_function_wrapper(Job, "__setstate__", _job_loaded)
    for name, wrapper in (("run_job", _RunJob), ("run_coroutine_job", _RunCoroutineJob)):
        original = getattr(executors, name)
        wrapped = wrapper(original)
        # Each executor's module has imported it by name
        for module_name, module in list(sys.modules.items()):
            if module_name.startswith("apscheduler.executors") and getattr(module, name, None) is original:
                setattr(module, name, wrapped)


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
    if _MARK in vars(target):
        return target
    _patch()
    vars(target)[_MARK] = True
    # Now rather than in the first run, which might overlap the second for it
    the_recorder()
    known = weakref.ref(target)

    def overlapped(event: Any) -> None:
        scheduler: Any = known()
        job = scheduler.get_job(event.job_id, event.jobstore) if scheduler is not None else None
        for run_time in event.scheduled_run_times if job is not None else ():
            _missed(job, run_time, "overlap")

    target.add_listener(overlapped, EVENT_JOB_MAX_INSTANCES)
    return target


def instrument_all() -> None:
    """Instrument every scheduler that the app makes from now on. Twice is harmless."""
    if isinstance(vars(BaseScheduler)["__init__"], wrapt.FunctionWrapper):
        return

    def made(wrapped: Callable[..., None], scheduler: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        wrapped(*args, **kwargs)
        try:
            instrument(scheduler)
        except Exception as error:
            report(_WHERE, error)

    wrapt.wrap_function_wrapper(BaseScheduler, "__init__", made)
