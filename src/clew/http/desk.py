"""Where a router asks the history: in a few threads of its own, so that neither the event loop nor the app's threads wait for it."""

from __future__ import annotations

import asyncio
import contextvars
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from sqlalchemy import Connection

from clew import clock
from clew.diagnostics import report
from clew.engine import runtime
from clew.history.database import DatabaseError
from clew.history.reading import Reader
from clew.http.steering import bury

MAX_THREADS: Final = 4
MAX_WAITING: Final = 64
DEADLINE_S: Final = 10.0
BURY_INTERVAL_S: Final = 2.0
_IDLE_S: Final = 30.0

T = TypeVar("T")


class Desk:
    """Asks the history that the settings name. A database that hangs costs these threads, and the app nothing.

    Example:
        >>> desk = Desk()
        >>> asyncio.run(desk.ask(lambda connection: connection.dialect.name in ("sqlite", "postgresql")))
        True
    """

    _reader: Reader | None
    _url: str
    _bury_at: float

    def __init__(self) -> None:
        self._reset()

    async def ask(self, question: Callable[[Connection], T]) -> T:
        """Return what a question about the history is answered with.

        Args:
            question: gets a connection to read from.

        Raises:
            DatabaseError: there is no answer now; the message says why.
        """
        return await self.do(lambda: self._read(question))

    async def do(self, work: Callable[[], T]) -> T:
        """Do something that waits for a database, elsewhere; return what it returns.

        Raises:
            DatabaseError: it was not done in time, or there is too much to do.
        """
        future = self._submit(work)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), DEADLINE_S)
        except TimeoutError:
            raise DatabaseError(f"the history did not answer within {DEADLINE_S:.0f} s: try again later") from None

    def reader(self) -> Reader:
        """Return what reads the history.

        Raises:
            DatabaseError: the history is switched off, or its address can't be used.
        """
        settings = runtime.ready().settings
        if settings is None or not settings.history:
            raise DatabaseError("the history is switched off here: CLEW_HISTORY=true switches it on")
        url = settings.history_url()
        with self._lock:
            if self._reader is None or self._url != url:
                self._reader, self._url = Reader(url), url
            return self._reader

    def _read(self, question: Callable[[Connection], T]) -> T:
        reader = self.reader()
        self._bury(reader)
        with reader.open() as connection:
            return question(connection)

    def _bury(self, reader: Reader) -> None:
        """See to it that nothing whose process is gone is told of as running."""
        now = clock.monotonic_s()
        with self._lock:
            if now < self._bury_at:
                return
            self._bury_at = now + BURY_INTERVAL_S
        try:
            bury(reader)
        except DatabaseError as error:
            # What can't be written may be readable
            report("jobs router", error)

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        if self._pid != os.getpid():
            # A forked child has none of its parent's threads
            self._reset()
        future: Future[T] = Future()
        with self._lock:
            if self._work.qsize() >= MAX_WAITING:
                raise DatabaseError("too many questions to the history are waiting for an answer: try again later")
            # The thread of the request goes along: what is asked of the database belongs to its trace
            self._work.put((future, contextvars.copy_context(), work))
            if self._idle <= 0 and self._threads < MAX_THREADS:
                self._threads += 1
                threading.Thread(target=self._run, name="clew-desk", daemon=True).start()
        return future

    def _run(self) -> None:
        work = self._work
        while True:
            with self._lock:
                self._idle += 1
            try:
                future, context, function = work.get(timeout=_IDLE_S)
            except queue.Empty:
                with self._lock:
                    self._idle -= 1
                    if work.empty():
                        self._threads -= 1
                        return
                continue
            with self._lock:
                self._idle -= 1
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(context.run(function))
            except BaseException as error:
                # Whatever it is, who waits must hear of it
                future.set_exception(error)
            del future, context, function

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._work: queue.SimpleQueue[tuple[Future[Any], contextvars.Context, Callable[[], Any]]] = queue.SimpleQueue()
        self._threads = 0
        self._idle = 0
        self._bury_at = 0.0
        self._reader, self._url = None, ""
