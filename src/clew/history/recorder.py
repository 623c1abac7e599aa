"""The recorder: one thread a process that writes rows to the history, so that neither the app nor its event loop waits for it.

Rows that steer, such as a run's start and end, are committed at once, many together where many come at once. Rows that record
are written in batches. Every write may be done twice to no harm, because what was not known to be written is written again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import psutil
from opentelemetry import trace
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from clew import clock
from clew.catalog import semconv
from clew.diagnostics import report
from clew.engine import runtime
from clew.engine.context import correlation_id
from clew.history import processes
from clew.history.database import Database, DatabaseError
from clew.history.writing import Change, write
from clew.pipeline.breaker import Breaker
from clew.settings import Settings

logger = logging.getLogger("clew.history")

MAX_BATCH_ROWS: Final = 1_000
MAX_QUEUED_ROWS: Final = 20_000
RECORD_INTERVAL_S: Final = 1.0
COMMIT_WAIT_S: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Who writes: the service and its instance, and the process that can be looked for when it falls silent."""

    service: str
    instance: str
    host: str
    pid: int
    process_started_at: datetime
    process_key: str | None


@dataclass(slots=True, kw_only=True)
class Chore:
    """Something that the recorder's thread does at intervals while the database answers, in a transaction of its own.

    Attributes:
        name: for the log.
        interval_s: how often, in seconds.
        do: what; it gets a connection.
        writes: whether it changes anything; what only looks need not wait for those who write.
        due_at: when next, in seconds of the monotonic clock; at first at once.
    """

    name: str
    interval_s: float
    do: Callable[[Connection], object]
    writes: bool = True
    due_at: float = 0.0


@dataclass(slots=True)
class _Queued:
    change: Change
    done: Future[bool] | None = field(default=None)


class Recorder:
    """Writes rows of this process to the history.

    Args:
        settings: which database, and how much may wait.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._origin: Origin | None = None
        self.database = Database(settings.history_url())
        self._steering: deque[_Queued] = deque()
        self._recording: deque[_Queued] = deque()
        self._chores: list[Chore] = []
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._breaker = Breaker()
        self._is_ready = False
        self._is_closing = False
        self._flushes: list[threading.Event] = []

    # What rows have in common

    @property
    def origin(self) -> Origin:
        """Who writes."""
        if self._origin is None:
            self._origin = _origin(runtime.resource_attributes())
        return self._origin

    def row(self, **columns: Any) -> dict[str, Any]:
        """Return columns with those that every record has: its writer, and the thread of what is current."""
        context = trace.get_current_span().get_span_context()
        traced = context.is_valid
        return {
            "service": self.origin.service,
            "instance": self.origin.instance,
            "trace_id": f"{context.trace_id:032x}" if traced else None,
            "span_id": f"{context.span_id:016x}" if traced else None,
            "correlation_id": correlation_id(),
            "recorded_at": clock.utc_now(),
            **columns,
        }

    # Writing

    def record(self, change: Change) -> None:
        """Have a row written with the next batch; never waits."""
        with self._wake:
            if len(self._recording) >= MAX_QUEUED_ROWS:
                self._drop("queue_full", 1)
                return
            self._recording.append(_Queued(change))
            self._start()
            if len(self._recording) >= MAX_BATCH_ROWS:
                self._wake.notify()

    def steer(self, change: Change) -> Future[bool]:
        """Have a row committed at once.

        Returns:
            What is done when it was committed (true), or is kept elsewhere because the database is away (false).
        """
        done: Future[bool] = Future()
        with self._wake:
            self._steering.append(_Queued(change, done))
            self._start()
            self._wake.notify()
        return done

    def steer_and_wait(self, change: Change) -> None:
        """Have a row committed at once and wait for it, a second at most; on an event loop, go on without waiting."""
        done = self.steer(change)
        if not self._breaker.pause_s and not _on_event_loop():
            try:
                done.result(COMMIT_WAIT_S)
            except TimeoutError:
                return

    async def steer_and_await(self, change: Change) -> None:
        """Have a row committed at once and await it, a second at most."""
        done = self.steer(change)
        if not self._breaker.pause_s:
            await asyncio.wait([asyncio.wrap_future(done)], timeout=COMMIT_WAIT_S)

    def add_chore(self, chore: Chore) -> None:
        """Have something done at intervals from now on."""
        with self._wake:
            if all(known.name != chore.name for known in self._chores):
                self._chores.append(chore)
            self._start()
            self._wake.notify()

    def hurry(self, name: str) -> None:
        """Have a chore done now rather than when it is due."""
        with self._wake:
            for chore in self._chores:
                if chore.name == name:
                    chore.due_at = 0.0
            self._start()
            self._wake.notify()

    # Life

    def flush(self, timeout_s: float) -> bool:
        """Write what waits; return whether nothing does any more."""
        with self._wake:
            if self._thread is None or not self._thread.is_alive():
                return not (self._steering or self._recording)
            done = threading.Event()
            self._flushes.append(done)
            self._wake.notify()
        return done.wait(timeout_s)

    def shutdown(self, timeout_s: float) -> bool:
        """Write what waits and end the thread."""
        with self._wake:
            self._is_closing = True
            thread = self._thread
            self._wake.notify()
        if thread is None:
            return True
        thread.join(timeout_s)
        return not thread.is_alive()

    def reset_after_fork(self) -> None:
        """Leave to the parent what was the parent's."""
        self._origin = None
        self._steering, self._recording = deque(), deque()
        self._wake = threading.Condition()
        self._thread, self._flushes = None, []
        self._is_closing = False
        for chore in self._chores:
            chore.due_at = clock.monotonic_s() + chore.interval_s

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="clew-history", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(self._has_work, timeout=self._idle_s())
                flushes, self._flushes = self._flushes, []
                closing = self._is_closing
                batch = self._take()
            try:
                self._handle(batch)
                while flushes or closing:
                    with self._wake:
                        batch = self._take()
                    if not batch:
                        break
                    self._handle(batch)
                self._do_chores()
            except Exception as error:
                report("history", error)
            for flushed in flushes:
                flushed.set()
            if closing:
                self.database.engine.dispose()
                return

    def _has_work(self) -> bool:
        return bool(self._steering or self._flushes or self._is_closing or len(self._recording) >= MAX_BATCH_ROWS)

    def _idle_s(self) -> float:
        now = clock.monotonic_s()
        dues = [chore.due_at - now for chore in self._chores]
        if self._recording:
            dues.append(RECORD_INTERVAL_S)
        return max(0.0, min(dues, default=3600.0))

    def _take(self) -> list[_Queued]:
        taken: list[_Queued] = []
        for queue in (self._steering, self._recording):
            while queue and len(taken) < MAX_BATCH_ROWS:
                taken.append(queue.popleft())
        return taken

    def _handle(self, batch: list[_Queued]) -> None:
        if not batch:
            return
        committed = False
        if self._breaker.allows():
            try:
                self._write([queued.change for queued in batch])
                committed = True
            except (SQLAlchemyError, DatabaseError, OSError) as error:
                self._complain(error)
        if not committed:
            self._keep([queued.change for queued in batch])
        for queued in batch:
            if queued.done is not None:
                queued.done.set_result(committed)

    def _prepare(self) -> None:
        if not self._is_ready:
            self.database.ensure(auto_upgrade=self.settings.database_auto_upgrade)
            self._is_ready = True

    def _write(self, changes: list[Change]) -> None:
        self._prepare()
        with self.database.write() as connection:
            write(connection, changes)
        if self._breaker.mend():
            logger.warning("the history in %s is written to again", self.database)

    def _keep(self, changes: list[Change]) -> None:
        """Keep what the database did not take."""
        self._drop("no_database", len(changes))

    def _drop(self, reason: str, rows: int) -> None:
        report("history", f"{rows} rows lost: {reason}")

    def _complain(self, error: Exception) -> None:
        if self._breaker.trip():
            logger.warning("the history in %s can't be written to: %s", self.database, error)

    def _do_chores(self) -> None:
        now = clock.monotonic_s()
        for chore in self._chores:
            if now < chore.due_at:
                continue
            chore.due_at = now + chore.interval_s
            if not self._breaker.allows():
                continue
            try:
                self._prepare()
                with self.database.write() if chore.writes else self.database.read() as connection:
                    chore.do(connection)
            except (SQLAlchemyError, DatabaseError, OSError) as error:
                self._complain(error)
            except Exception as error:
                report(f"history: {chore.name}", error)


_recorder: Recorder | None = None
_lock = threading.Lock()


def recorder() -> Recorder | None:
    """Return the recorder of this process; ``None`` where the history is switched off."""
    global _recorder
    if _recorder is not None:
        return _recorder
    state = runtime.ready()
    settings = state.settings
    if settings is None or not settings.history or state.capturing:
        return None
    with _lock:
        if _recorder is None:
            try:
                made = Recorder(settings)
            except DatabaseError as error:
                report("history", error)
                return None
            runtime.add_part(made)
            _recorder = made
    return _recorder


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    if _recorder is not None:
        _recorder.reset_after_fork()


os.register_at_fork(after_in_child=_after_fork)


def _origin(resource: Mapping[str, Any]) -> Origin:
    pid = os.getpid()
    return Origin(
        service=str(resource.get(semconv.SERVICE_NAME, "")),
        instance=str(resource.get(semconv.SERVICE_INSTANCE_ID, "")),
        host=socket.gethostname(),
        pid=pid,
        process_started_at=datetime.fromtimestamp(psutil.Process(pid).create_time(), tz=UTC),
        process_key=processes.key_of(pid),
    )


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
