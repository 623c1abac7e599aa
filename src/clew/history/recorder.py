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
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from opentelemetry import trace
from sqlalchemy import Connection

from clew import clock
from clew.catalog.metrics import HISTORY_ACCEPTED, HISTORY_DROPPED, HISTORY_PENDING, HISTORY_WRITTEN
from clew.diagnostics import report
from clew.engine import ending, runtime
from clew.engine.context import correlation_id
from clew.history.companions import begin_all
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
_LONGEST_SLEEP_S: Final = 3_600.0


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
    given: Change | Callable[[], Change]
    done: Future[bool] | None = field(default=None)

    @property
    def change(self) -> Change:
        """The row; made now where the app's thread has left that to this one."""
        if not isinstance(self.given, Change):
            self.given = self.given()
        return self.given

    def settle(self, *, committed: bool) -> None:
        if self.done is not None:
            # Who awaited it may have given up
            with suppress(InvalidStateError):
                self.done.set_result(committed)


class Recorder:
    """Writes rows of this process to the history.

    The app's threads hold no lock that the writing thread or the shutdown needs: a signal may interrupt them anywhere, and its
    handler may wait for the shutdown.

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
        self._recording_due = 0.0
        # A lock that is held while nobody rings
        self._bell = threading.Lock()
        self._bell.acquire()
        self._claiming = threading.Lock()
        self._thread: threading.Thread | None = None
        self._starting = threading.RLock()
        self._is_late = False
        self._is_closing = False
        self._has_ended = False
        self._flushes: deque[threading.Event] = deque()

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
        self._record(change)

    def record_later(self, make: Callable[[], Change]) -> None:
        """Have a row made by the thread that writes it, with the next batch; never waits.

        Args:
            make: returns the row, and never raises; what it needs must not change meanwhile.
        """
        self._record(make)

    def _record(self, given: Change | Callable[[], Change]) -> None:
        if not self._recording:
            self._recording_due = clock.monotonic_s() + RECORD_INTERVAL_S
        self._queue(self._recording, _Queued(given))

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
        if all(known.name != chore.name for known in self._chores):
            self._chores.append(chore)
        self._rouse()

    def hurry(self, name: str) -> None:
        """Have a chore done now rather than when it is due."""
        for chore in list(self._chores):
            if chore.name == name:
                chore.due_at = 0.0
        self._rouse()

    def _queue(self, queue: deque[_Queued], queued: _Queued) -> None:
        self._writer.accept()
        if len(queue) >= MAX_QUEUED_ROWS:
            self._writer.overflow()
            queued.settle(committed=False)
            return
        queue.append(queued)
        if self._has_ended:
            # Nobody writes any more: the next start does
            self._keep_left()
        elif queue is self._steering or len(queue) in (1, MAX_BATCH_ROWS):
            self._rouse()

    def _is_worth_waiting(self) -> bool:
        # Where one has waited in vain, the others need not
        return self._writer.is_well() and not self._is_late

    # Life

    def flush(self, timeout_s: float) -> bool:
        """Write what waits, on disk as well; return whether nothing waits in memory any more."""
        if self._thread is None or not self._thread.is_alive():
            if not (self._steering or self._recording):
                return True
            if self._is_closing:
                return False
            # Who has put the first row there is about to start the thread
            self._start()
            if self._thread is None:
                return False
        done = threading.Event()
        self._flushes.append(done)
        self._ring()
        return done.wait(timeout_s)

    def shutdown(self, timeout_s: float) -> bool:
        """Write what waits and end the thread; what is not written in time waits on disk for the next start."""
        self._is_closing = True
        thread = self._thread
        self._ring()
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s * (1 - _SPOOLING_SHARE))
        self._has_ended = True
        self._keep_left()
        self._writer.say_what_was_lost()
        return True

    def _keep_left(self) -> None:
        """Write to disk what nobody will write to the database."""
        with self._claiming:
            left, self._in_hand = self._in_hand, []
        for queue in (self._steering, self._recording):
            with suppress(IndexError):
                while True:
                    left.append(queue.popleft())
        self._writer.keep([queued.change for queued in left])
        for queued in left:
            queued.settle(committed=False)
        self._writer.release()

    def reset_after_fork(self) -> None:
        """Leave to the parent what was the parent's."""
        self._start_anew()
        self._writer.reset_after_fork()
        for chore in self._chores:
            chore.due_at = clock.monotonic_s() + chore.interval_s

    def _rouse(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._start()
        self._ring()

    def _ring(self) -> None:
        # It rings already
        with suppress(RuntimeError):
            self._bell.release()

    def _start(self) -> None:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._run, name="clew-history", daemon=True)
                # Where the interpreter is ending, the shutdown writes to disk what waits
                with suppress(RuntimeError):
                    thread.start()
                    self._thread = thread

    def _run(self) -> None:
        while True:
            if not self._has_work():
                self._bell.acquire(timeout=self._idle_s())
            flushes = [self._flushes.popleft() for _ in range(len(self._flushes))]
            closing = self._is_closing
            if self._has_ended:
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
        while batch := self._take(drain=drain):
            self._handle(batch)
            if not drain:
                break
        self._do_chores()

    def _has_work(self) -> bool:
        return bool(self._steering or self._flushes or self._is_closing or self._has_batch())

    def _has_batch(self) -> bool:
        waiting = len(self._recording)
        return waiting >= MAX_BATCH_ROWS or (waiting > 0 and clock.monotonic_s() >= self._recording_due)

    def _idle_s(self) -> float:
        now = clock.monotonic_s()
        dues = [chore.due_at - now for chore in list(self._chores)]
        if self._recording:
            dues.append(self._recording_due - now)
        return max(0.0, min(self._writer.next_attempt_s(), *dues, _LONGEST_SLEEP_S))

    def _take(self, *, drain: bool) -> list[_Queued]:
        taken: list[_Queued] = []
        # What records goes along where something is written anyway
        records = drain or self._has_batch() or bool(self._steering)
        with self._claiming:
            for queue in (self._steering, self._recording) if records else (self._steering,):
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
            with self._claiming:
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
    is_new = False
    with _lock:
        if _recorder is None:
            try:
                made = Recorder(settings)
            except DatabaseError as error:
                report("history", error)
                return None
            ending.add_part(made)
            runtime.add_account(
                "history",
                made.account,
                emitted=HISTORY_ACCEPTED,
                delivered=HISTORY_WRITTEN,
                dropped=HISTORY_DROPPED,
                pending=HISTORY_PENDING,
            )
            _recorder, is_new = made, True
    if is_new:
        begin_all()
    return _recorder


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.Lock()
    if _recorder is not None:
        _recorder.reset_after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _on_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
