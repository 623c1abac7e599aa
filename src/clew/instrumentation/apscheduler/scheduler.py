"""A scheduler, as the history and other processes see it: what it has, and what may be done with that from outside."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Any, Final

from apscheduler.events import EVENT_JOB_SUBMITTED, JobSubmissionEvent
from apscheduler.executors.base import MaxInstancesReachedError
from apscheduler.jobstores.base import JobLookupError
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.base import STATE_PAUSED, STATE_RUNNING, STATE_STOPPED

from clew.history import processes
from clew.instrumentation.apscheduler.identity import copy_of, key_of, name_of, thread_of
from clew.instrumentation.apscheduler.thread import REQUESTED_BY, carriers
from clew.jobs.schedule import Planned, Verb

_MAX_SHOWN: Final = 1_000
_LOCK_WAIT_S: Final = 0.05
_LOOP_WAIT_S: Final = 5.0


class ShownScheduler:
    """An instrumented scheduler. It does not keep the scheduler alive.

    Args:
        scheduler: of APScheduler 3.
    """

    def __init__(self, scheduler: Any) -> None:
        self._reference: Callable[[], Any] = weakref.ref(scheduler)
        self._pid = os.getpid()

    def started(self) -> None:
        """Take note that it was started, in this process: one of a forked child's parent has no thread there."""
        self._pid = os.getpid()

    def is_running(self) -> bool:
        """Tell whether it starts jobs."""
        scheduler = self._reference()
        return scheduler is not None and scheduler.state == STATE_RUNNING and self._pid == os.getpid()

    def planned(self) -> list[Planned] | None:
        """Return what it has; ``None`` while it is at work on that itself."""
        scheduler = self._reference()
        if scheduler is None or (scheduler.state != STATE_STOPPED and self._pid != os.getpid()):
            return []
        lock = scheduler._jobstores_lock
        # A job that runs where the scheduler holds its lock may wait for the thread that this is
        if not lock.acquire(timeout=_LOCK_WAIT_S):
            return None
        try:
            return [self._planned(scheduler, job) for job in scheduler.get_jobs()[:_MAX_SHOWN]]
        finally:
            lock.release()

    def do(self, verb: Verb, job_id: str, requested_by: str | None) -> str:
        """Do something with a job; see :meth:`clew.jobs.schedule.Scheduler.do`."""
        scheduler = self._reference()
        if scheduler is None or (scheduler.state != STATE_STOPPED and self._pid != os.getpid()):
            raise LookupError(job_id)
        try:
            if verb == "run":
                return self._run(scheduler, job_id, requested_by)
            if verb == "remove":
                scheduler.remove_job(job_id)
                return "removed"
            if verb == "pause":
                scheduler.pause_job(job_id)
                return "paused"
            job = scheduler.resume_job(job_id)
        except JobLookupError as error:
            raise LookupError(job_id) from error
        return "resumed" if job is not None else "removed: its trigger has no time left"

    def hold(self) -> None:
        """Start no more jobs; those that run go on."""
        scheduler = self._reference()
        if self.is_running():
            scheduler.pause()

    def _run(self, scheduler: Any, job_id: str, requested_by: str | None) -> str:
        """Run a job now and once, beside its schedule, which stays as it is."""
        if scheduler.state == STATE_STOPPED:
            raise RuntimeError("its scheduler has not started")
        job, alias = scheduler._lookup_job(job_id, None)
        now = datetime.now(UTC)
        asked = copy_of(job)
        carriers.put(asked, {**thread_of(job), REQUESTED_BY: requested_by or ""})
        asked._jobstore_alias = alias

        def submit() -> None:
            try:
                scheduler._lookup_executor(asked.executor).submit_job(asked, [now])
            except MaxInstancesReachedError as error:
                raise RuntimeError("it runs already, as often as it may at the same time") from error
            scheduler._dispatch_event(JobSubmissionEvent(EVENT_JOB_SUBMITTED, job_id, alias, [now]))

        _where_it_runs(scheduler, submit)
        return "started"

    def _planned(self, scheduler: Any, job: Any) -> Planned:
        pending = job.pending
        due = None if pending else job.next_run_time
        return Planned(
            job_id=job.id,
            job=name_of(job),
            job_key=key_of(job),
            trigger=str(job.trigger),
            next_run_at=due.astimezone(UTC) if due is not None else None,
            pending=pending,
            paused=not pending and (due is None or scheduler.state == STATE_PAUSED),
            stored=_stored(scheduler, job),
        )


def _where_it_runs(scheduler: Any, submit: Callable[[], None]) -> None:
    """Submit a job on the event loop of a scheduler that has one, which takes nothing from other threads."""
    loop = getattr(scheduler, "_eventloop", None)
    if loop is None or getattr(loop, "_thread_id", None) == threading.get_ident():
        submit()
        return
    done: Future[None] = Future()

    def on_loop() -> None:
        try:
            submit()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    loop.call_soon_threadsafe(on_loop)
    try:
        done.result(_LOOP_WAIT_S)
    except TimeoutError as error:
        raise RuntimeError("its event loop does not answer") from error


def _stored(scheduler: Any, job: Any) -> str:
    """Return where a job is kept: the same text for all who share it, without credentials."""
    store = scheduler._jobstores.get(job._jobstore_alias)
    if store is None or isinstance(store, MemoryJobStore):
        return "memory"
    kind = type(store).__name__.removesuffix("JobStore").lower()
    engine = getattr(store, "engine", None)
    if engine is not None:
        url = engine.url.set(username=None, password=None, query={})
        where = f"{url.render_as_string()} {getattr(store, 'jobs_t', '')}"
        return f"{processes.host()} {where}" if url.host is None else where
    options = getattr(getattr(getattr(store, "redis", None), "connection_pool", None), "connection_kwargs", None)
    if options is not None:
        address = options.get("path") or f"{options.get('host', 'localhost')}:{options.get('port', 6379)}"
        return f"{kind} {address}/{options.get('db') or 0} {getattr(store, 'jobs_key', '')}"
    return kind
