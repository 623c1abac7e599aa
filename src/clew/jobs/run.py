"""A run of a job: ``clew.job`` as a context manager and a decorator, and the runs that a scheduler starts, or does not."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime  # noqa: F401 - the examples
from types import TracebackType
from typing import Any, Final, Literal, ParamSpec, Self, TypeVar, cast

from opentelemetry import trace
from opentelemetry.context import Context

from clew import clock
from clew.catalog.metrics import JOB_LATENESS, JOB_MISFIRES
from clew.catalog.operations import JOB, JOB_NOT_RUN
from clew.diagnostics import is_strict, report
from clew.engine import logs
from clew.engine.context import Carried, extract
from clew.engine.decoration import decorate
from clew.engine.metrics import registry
from clew.engine.operation import Operation
from clew.jobs.ending import ending
from clew.jobs.occasion import Occasion
from clew.jobs.record import RunRecord, new_record
from clew.jobs.running import running
from clew.jobs.success import successes

P = ParamSpec("P")
R = TypeVar("R")

STATUS: Final = "clew.job.status"

MisfireReason = Literal["late", "overlap"]
_STATUSES: Final[dict[MisfireReason, str]] = {"late": "missed", "overlap": "skipped"}
_NOTHING: Final = object()
_CUT: Final = "the process ended before the run did"
# What a job returns is kept where it is meant to be read; a response, a session or a table is not
_JSON_LIKE: Final = (str, int, float, list, tuple, dict)


class JobRun(Operation):
    """A run of a job, with a status and a durable record. Made by :func:`job`.

    The status is ``completed``, ``failed`` or ``cancelled``. The record is committed before the work starts and completed when it
    has ended: a thread waits for the commits, an event loop awaits them within ``async with`` and in a decorated coroutine.
    """

    __slots__ = ("_is_over", "_message", "_pid", "_record", "_result", "occasion")

    occasion: Occasion

    def __init__(self, *operation: Any, occasion: Occasion, **options: Any) -> None:
        super().__init__(*operation, **options)
        self.occasion = occasion
        self._record: RunRecord | None = None
        self._result: Any = _NOTHING
        self._message = ""
        self._pid = 0
        self._is_over = False

    # What a user does with it

    @property
    def id(self) -> str:
        """The id of the run in the history, or ``""`` where there is none."""
        return self._record.id if self._record is not None else ""

    def set_result(self, value: Any) -> None:
        """Keep what came of the run: as JSON, redacted, and no more than ``CLEW_PAYLOAD_MAX_BYTES`` of it.

        Args:
            value: anything. What a decorated function returns is kept without this call where it is a text, a number, a list or
                a dictionary.

        Example:
            >>> import clew
            >>> with clew.job("digest") as run:
            ...     run.set_result({"sent": 12})
        """
        self._result = value

    def progress(self, share: float) -> None:
        """Say how much of the work is done. It is written with the next heartbeat.

        Args:
            share: from 0 to 1.

        Example:
            >>> import clew
            >>> with clew.job("digest") as run:
            ...     run.progress(0.4)
        """
        try:
            done = float(share)
        except (TypeError, ValueError, OverflowError):
            done = math.nan
        if math.isnan(done):
            report("job.progress", "progress is a number from 0 to 1")
        elif self._record is not None:
            self._record.progress = min(1.0, max(0.0, done))

    def fail(self, error: BaseException | str, message: str = "") -> None:
        """Mark the run as failed without raising; see :meth:`Operation.fail`."""
        super().fail(error, message)
        self._message = str(message) or (logs._message(error) if isinstance(error, BaseException) else "")

    # Its life

    def begin(self, *, start_time_ns: int | None = None) -> None:
        """Start the run; its record is committed when this returns, but on an event loop, which is not made to wait."""
        self._prepare()
        super().begin(start_time_ns=start_time_ns)
        self._keep_start(RunRecord.wait)
        self._start_work()

    async def begin_async(self) -> None:
        """Start the run; await its record's commit."""
        self._prepare()
        super().begin()
        if (waiting := self._keep_start(RunRecord.wait_on_loop)) is not None:
            await waiting
        self._start_work()

    def finish(self, error: BaseException | None = None) -> None:
        """End the run, give it its status, and complete its record as :meth:`begin` made it."""
        try:
            self._keep_end(self._end(error), error, RunRecord.wait)
        finally:
            running.discard(self)

    async def finish_async(self, error: BaseException | None = None) -> None:
        """End the run; await that its record is complete."""
        try:
            if (waiting := self._keep_end(self._end(error), error, RunRecord.wait_on_loop)) is not None:
                await waiting
        finally:
            running.discard(self)

    def cut(self) -> None:
        """Mark the run as cancelled, because its process ends; should it end yet, its record is completed all the same."""
        if running.claim(self):
            self.interrupt("shutdown")
            self._message = _CUT
            self._end_operation(None)
            self._keep_end(str(self.attributes[STATUS]), None, RunRecord.send)
            running.discard(self)

    def misfire(self, reason: MisfireReason) -> None:
        """End the run as one that did not start, and count it."""
        self.set(STATUS, _STATUSES[reason])
        self.finish()
        labels = {"clew.job.name": self.attributes["clew.job.name"], "clew.job.misfire.reason": reason}
        registry.declared(JOB_MISFIRES).add(1, **labels)

    async def __aenter__(self) -> Self:
        await self.begin_async()
        self._token = self.attach()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self.finish_async(error)
        finally:
            token, self._token = self._token, None
            if token is not None:
                self._detach(token)

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Make every call of ``function`` a run: sync, async, a generator or an async generator."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            return decorate(self, cast("Callable[P, R]", function))
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def coroutine(*args: P.args, **kwargs: P.kwargs) -> Any:
                async with self.again() as run:
                    returned = await function(*args, **kwargs)
                    run.take_returned(returned)
                    return returned

            return cast("Callable[P, R]", coroutine)

        @functools.wraps(function)
        def plain(*args: P.args, **kwargs: P.kwargs) -> R:
            with self.again() as run:
                returned = function(*args, **kwargs)
                run.take_returned(returned)
                return returned

        return plain

    def again(self) -> JobRun:
        """Return a fresh run like this one, for one call of a decorated function."""
        return type(self)(
            self.kind,
            self.attributes.copy(),
            name=self._name,
            parent=self._parent,
            links=self._links,
            root=self._root,
            occasion=self.occasion,
        )

    def take_returned(self, value: Any) -> None:
        """Take what the job returned as its result, where that is made to be read and none was set."""
        if self._result is _NOTHING and isinstance(value, _JSON_LIKE):
            self._result = value

    def _judge(self, error: BaseException) -> None:
        if not isinstance(error, SystemExit):
            super()._judge(error)
        elif error.code not in (None, 0) and error is not self._error:
            self.fail(error)

    def _end(self, error: BaseException | None) -> str | None:
        """End the operation; return the status, or ``None`` where there is nothing to end."""
        if self.context is None or self._pid != os.getpid():
            # A child that was forked within the run ends nothing of its parent's
            return None
        if not running.claim(self) and self._is_over:
            # It was marked when the process began to end, and has ended after all: its record tells what came of it
            self._interrupted, self.error_type, self._message = False, None, ""
            if isinstance(error, Exception):
                self._error, self.error_type = error, type(error).__qualname__
            return self._status(error)
        self._end_operation(error)
        return str(self.attributes[STATUS])

    def _end_operation(self, error: BaseException | None) -> None:
        self._is_over = True
        if STATUS not in self.attributes:
            self.set(STATUS, self._status(error))
        super().finish(error)
        if self.attributes[STATUS] == "completed":
            successes.note(str(self.attributes["clew.job.name"]))

    def _status(self, error: BaseException | None) -> str:
        if isinstance(error, SystemExit):
            error = None if error.code in (None, 0) else RuntimeError()
        if isinstance(error, Exception) or (self.error_type is not None and not self._interrupted):
            return "failed"
        if self._interrupted or not (error is None or isinstance(error, GeneratorExit)):
            return "cancelled"
        return "completed"

    def _prepare(self) -> None:
        self._pid = os.getpid()
        self._record = new_record(self.attributes["clew.job.name"], self.occasion)

    def _start_work(self) -> None:
        if self._record is not None and self._started_ns:
            # The commit of its record is no work of the job's
            self._started_ns = clock.monotonic_ns()

    def _thread(self) -> dict[str, str | None]:
        context = trace.get_current_span(self.context).get_span_context()
        ids = (f"{context.trace_id:032x}", f"{context.span_id:016x}") if context.is_valid else (None, None)
        return {"trace_id": ids[0], "span_id": ids[1], "correlation_id": self.correlation_id}

    def _keep_start(self, keep: Callable[..., Any]) -> Any:
        try:
            record = self._record
            if self.context is None or self.kind is not JOB:
                return None
            change = record.started(self.attributes, self._thread()) if record is not None else None
            running.add(self, record)
            ending.arm()
            successes.expect(str(self.attributes["clew.job.name"]))
            return keep(record, change) if record is not None else None
        except Exception as error:
            if is_strict():
                raise
            report("job history", error)
            return None

    def _keep_end(self, status: str | None, error: BaseException | None, keep: Callable[..., Any]) -> Any:
        record = self._record
        try:
            if status is None or record is None:
                return None
            if self.kind is not JOB:
                return keep(record, record.not_started(status, self.attributes, self._thread()))
            columns: dict[str, Any] = {"duration_s": (clock.monotonic_ns() - self._started_ns) / 1e9}
            if self._result is not _NOTHING:
                columns["result"] = record.result(self._result)
            if self.error_type is not None:
                cause = self._error if self._error is not None else error
                columns |= record.error(self.error_type, self._message or _told(error), cause)
            return keep(record, record.ended(status, self.attributes, **columns))
        except Exception as problem:
            if is_strict():
                raise
            report("job history", problem)
            return None


def _told(error: BaseException | None) -> str:
    return logs._message(error) if error is not None else ""


class ScheduledRun(JobRun):
    """A run that a scheduler started, perhaps late. Made by :func:`scheduled_run`."""

    __slots__ = ()

    def _keep_start(self, keep: Callable[..., Any]) -> Any:
        if self.context is not None:
            # Within the run, so that the measurement can lead to its trace
            with Carried(self.context):
                labels = {"clew.job.name": self.attributes["clew.job.name"]}
                registry.declared(JOB_LATENESS).record(self.attributes["clew.job.lateness_s"], **labels)
        return super()._keep_start(keep)


def job(name: str, /, *, user_id: str | None = None, attempt: int = 1, **metadata: Any) -> JobRun:
    """Trace, measure and record a run of a job, scheduled or not.

    A run that is started within a trace belongs to it. Its record in the history has its status, duration, error and result, and
    leads to its trace and log lines.

    Args:
        name: the job, of low cardinality.
        user_id: who asked for it.
        attempt: the how manieth try it is, where the app tries again.
        metadata: attributes of the run, kept in its record.

    Example:
        >>> import clew
        >>> with clew.job("digest", topics=3) as run:
        ...     run.set("sent", 12)
        >>> @clew.job("cleanup")
        ... def cleanup(): ...
    """
    attributes: dict[str, Any] = {"clew.job.name": str(name), **metadata}
    if user_id is not None:
        attributes["user.id"] = user_id
    if attempt != 1:
        attributes["clew.job.attempt"] = attempt
    return JobRun(JOB, attributes, occasion=Occasion(user_id=user_id, attempt=attempt))


def scheduled_run(
    name: str,
    *,
    carrier: Mapping[Any, Any] | None,
    continues: bool,
    occasion: Occasion,
    attributes: Mapping[str, Any] | None = None,
) -> JobRun:
    """Return a run that a scheduler or a queue of tasks starts now, for its instrumentation.

    Args:
        name: the job, of low cardinality.
        carrier: the thread of what scheduled it, or ``None``.
        continues: the run belongs to that trace (a one-shot job); otherwise it has one of its own that links there.
        occasion: what fired it, and when it was due. Its lateness is reckoned here where it has a ``scheduled_at``.
        attributes: more attributes of the run.

    Example:
        >>> due = Occasion(source="apscheduler", scheduled_at=datetime.now(UTC))
        >>> with scheduled_run("digest", carrier=None, continues=False, occasion=due) as run:
        ...     run.set("sent", 12)
    """
    given = {**_scheduled(name, occasion), **(attributes or {})}
    made: type[JobRun] = JobRun
    if occasion.scheduled_at is not None:
        made = ScheduledRun
        late_s = occasion.lateness_s
        if late_s is None:
            late_s = max(0.0, (clock.utc_now() - occasion.scheduled_at).total_seconds())
        given["clew.job.lateness_s"] = late_s = round(late_s, 6)
        occasion = dataclasses.replace(occasion, lateness_s=late_s)
    carried = extract(carrier)
    continues = continues and carried.span_context.is_valid
    links = () if continues else (carried,)
    # What is current where a scheduler wakes up is whatever last touched the scheduler: it is no parent
    return made(JOB, given, parent=carried, links=links, root=not continues, occasion=occasion)


def missed_run(
    name: str,
    *,
    carrier: Mapping[Any, Any] | None,
    reason: MisfireReason,
    occasion: Occasion,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Record a run that was due and that the scheduler did not start.

    Args:
        name: the job, of low cardinality.
        carrier: the thread of what scheduled it, or ``None``.
        reason: ``late`` (status ``missed``) or ``overlap`` (status ``skipped``).
        occasion: what should have fired it, and when it was due.
        attributes: more attributes of the run.

    Example:
        >>> due = Occasion(source="apscheduler", scheduled_at=datetime.now(UTC))
        >>> missed_run("digest", carrier=None, reason="overlap", occasion=due)
    """
    carried = extract(carrier) if carrier else Carried(Context())
    given = {**_scheduled(name, occasion), **(attributes or {})}
    run = JobRun(JOB_NOT_RUN, given, parent=carried, links=(carried,), root=True, occasion=occasion)
    run.begin()
    run.misfire(reason)


def _scheduled(name: str, occasion: Occasion) -> dict[str, Any]:
    due_at = occasion.scheduled_at
    known = {
        "clew.job.name": str(name),
        "clew.job.id": occasion.job_id,
        "clew.job.trigger": occasion.trigger,
        "clew.job.scheduled_at": due_at.astimezone(UTC).isoformat() if due_at is not None else None,
        "user.id": occasion.user_id,
        "clew.job.attempt": occasion.attempt if occasion.attempt != 1 else None,
    }
    return {key: value for key, value in known.items() if value is not None}
