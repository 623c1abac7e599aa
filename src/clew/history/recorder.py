"""The recorder: one thread a process that writes rows to the history, so that neither the app nor its event loop waits for it.

Rows that steer, such as a run's start and end, are committed at once, many together where many come at once. Rows that record
are written in batches. Every write may be done twice to no harm, because what was not known to be written is written again.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from opentelemetry import trace
from sqlalchemy import Connection

from clew import clock
from clew.catalog.metrics import HISTORY_ACCEPTED, HISTORY_DROPPED, HISTORY_PENDING, HISTORY_WRITTEN
from clew.diagnostics import report
from clew.engine import runtime
from clew.engine.context import correlation_id
from clew.history.database import Database, DatabaseError
from clew.history.origin import Origin, origin
from clew.history.writer import Fate, Writer, tell
from clew.history.writing import Change
from clew.pipeline.ledger import Account
from clew.settings import Settings

MAX_BATCH_ROWS: Final = 1_000
MAX_QUEUED_ROWS: Final = 20_000
RECORD_INTERVAL_S: Final = 1.0
COMMIT_WAIT_S: Final = 1.0
# What is kept of a deadline at the end of the process to write to disk what the database did not take
_SPOOLING_SHARE: Final = 0.2


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


@dataclass(slots=True, eq=False)
class _Queued:
    change: Change
    done: Future[bool] | None = field(default=None)

    def settle(self, *, committed: bool) -> None:
        if self.done is not None:
            self.done.set_result(committed)


class Recorder:
    """Writes rows of this process to the history.

    Args:
        settings: which database, and how much may wait.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._writer = Writer(settings)
        self._chores: list[Chore] = []
        self._start_anew()

    def _start_anew(self) -> None:
        self._origin: Origin | None = None
        self._steering: deque[_Queued] = deque()
        self._recording: deque[_Queued] = deque()
        self._in_hand: list[_Queued] = []
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_late = False
        self._is_closing = False
        self._has_ended = False
        self._flushes: list[threading.Event] = []

    @property
    def database(self) -> Database:
        """Where it writes to."""
        return self._writer.database

    def account(self) -> Account:
        """Return what became of the rows of this process: accepted (``emitted``), written (``delivered``), dropped, pending."""
        return self._writer.account()

    # What rows have in common

    @property
    def origin(self) -> Origin:
        """Who writes."""
        if self._origin is None:
            self._origin = origin()
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
        self._queue(self._recording, _Queued(change))

    def steer(self, change: Change) -> Future[bool]:
        """Have a row committed at once.

        Returns:
            What is done when it was committed (true), or is kept elsewhere because the database is away (false).
        """
        done: Future[bool] = Future()
        self._queue(self._steering, _Queued(change, done))
        return done

    def steer_and_wait(self, change: Change) -> bool:
        """Have a row committed at once and wait for it, a second at most; on an event loop, go on without waiting.

        Returns:
            True when it is in the database for sure. Else it may be there, waits in memory or on disk, or was counted as lost.
        """
        done = self.steer(change)
        if not self._is_worth_waiting() or _on_event_loop() or threading.current_thread() is self._thread:
            return done.done() and done.result()
        try:
            return done.result(COMMIT_WAIT_S)
        except TimeoutError:
            self._is_late = True
            return False

    async def steer_and_await(self, change: Change) -> bool:
        """Have a row committed at once and await it, a second at most; returns what :meth:`steer_and_wait` does."""
        done = self.steer(change)
        if self._is_worth_waiting():
            await asyncio.wait([asyncio.wrap_future(done)], timeout=COMMIT_WAIT_S)
            self._is_late = self._is_late or not done.done()
        return done.done() and done.result()

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

    def _queue(self, queue: deque[_Queued], queued: _Queued) -> None:
        self._writer.accept()
        with self._wake:
            ended, full = self._has_ended, len(queue) >= MAX_QUEUED_ROWS
            if not ended and not full:
                queue.append(queued)
                self._start()
                if queue is self._steering or len(queue) >= MAX_BATCH_ROWS:
                    self._wake.notify()
                return
        if ended:
            # Nobody writes any more: the next start does
            self._writer.keep([queued.change])
            self._writer.release()
        else:
            self._writer.lose("queue_full", 1)
        queued.settle(committed=False)

    def _is_worth_waiting(self) -> bool:
        # Where one has waited in vain, the others need not
        return self._writer.is_well() and not self._is_late

    # Life

    def flush(self, timeout_s: float) -> bool:
        """Write what waits, on disk as well; return whether nothing waits in memory any more."""
        with self._wake:
            if self._thread is None or not self._thread.is_alive():
                return not (self._steering or self._recording)
            done = threading.Event()
            self._flushes.append(done)
            self._wake.notify()
        return done.wait(timeout_s)

    def shutdown(self, timeout_s: float) -> bool:
        """Write what waits and end the thread; what is not written in time waits on disk for the next start."""
        with self._wake:
            self._is_closing = True
            thread = self._thread
            self._wake.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s * (1 - _SPOOLING_SHARE))
        with self._wake:
            self._has_ended = True
            left = [*self._in_hand, *self._steering, *self._recording]
            self._in_hand = []
            self._steering.clear()
            self._recording.clear()
        self._writer.keep([queued.change for queued in left])
        for queued in left:
            queued.settle(committed=False)
        self._writer.release()
        self._writer.say_what_was_lost()
        return True

    def pause_for_fork(self) -> None:
        """Hold still while the process forks."""
        self._writer.pause_for_fork()

    def resume_after_fork(self) -> None:
        """Go on, in the parent."""
        self._writer.resume_after_fork()

    def reset_after_fork(self) -> None:
        """Leave to the parent what was the parent's."""
        self._start_anew()
        self._writer.reset_after_fork()
        for chore in self._chores:
            chore.due_at = clock.monotonic_s() + chore.interval_s

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            thread = threading.Thread(target=self._run, name="clew-history", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # The interpreter is ending: the shutdown writes to disk what waits
                return
            self._thread = thread

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(self._has_work, timeout=self._idle_s())
                flushes, self._flushes = self._flushes, []
                closing, ended = self._is_closing, self._has_ended
            if ended:
                # The shutdown did not wait for what this thread was at
                return
            try:
                self._work(drain=bool(flushes) or closing)
            except Exception as error:
                tell("history", error)
            for flushed in flushes:
                flushed.set()
            if closing:
                self.database.close()
                return

    def _work(self, *, drain: bool) -> None:
        if drain:
            self._writer.try_again()
        self._writer.replay()
        while batch := self._take():
            self._handle(batch)
            if not drain:
                break
        self._do_chores()

    def _has_work(self) -> bool:
        return bool(self._steering or self._flushes or self._is_closing or len(self._recording) >= MAX_BATCH_ROWS)

    def _idle_s(self) -> float:
        now = clock.monotonic_s()
        dues = [chore.due_at - now for chore in self._chores]
        if self._recording:
            dues.append(RECORD_INTERVAL_S)
        return max(0.0, min(self._writer.next_attempt_s(), *dues, threading.TIMEOUT_MAX))

    def _take(self) -> list[_Queued]:
        taken: list[_Queued] = []
        with self._wake:
            for queue in (self._steering, self._recording):
                while queue and len(taken) < MAX_BATCH_ROWS:
                    taken.append(queue.popleft())
            self._in_hand = taken
        return taken

    def _handle(self, batch: list[_Queued]) -> None:
        changes = [queued.change for queued in batch]
        fates: list[Fate] = ["kept"] * len(batch)
        try:
            fates = self._writer.put(changes)
        finally:
            with self._wake:
                # Else the shutdown could not wait any longer, and has written them to disk
                ours = self._in_hand is batch
                self._in_hand = []
            if ours:
                self._writer.settle(changes, fates)
                for queued, fate in zip(batch, fates, strict=True):
                    queued.settle(committed=fate == "written")
        if self._writer.is_well():
            self._is_late = False

    def _do_chores(self) -> None:
        now = clock.monotonic_s()
        for chore in list(self._chores):
            if now >= chore.due_at:
                chore.due_at = now + chore.interval_s
                self._writer.do_chore(chore.name, chore.do, writes=chore.writes)


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
            runtime.add_account(
                "history",
                made.account,
                emitted=HISTORY_ACCEPTED,
                delivered=HISTORY_WRITTEN,
                dropped=HISTORY_DROPPED,
                pending=HISTORY_PENDING,
            )
            _recorder = made
    return _recorder


def _before_fork() -> None:
    if _recorder is not None:
        _recorder.pause_for_fork()


def _after_fork_in_parent() -> None:
    if _recorder is not None:
        _recorder.resume_after_fork()


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    if _recorder is not None:
        _recorder.reset_after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
