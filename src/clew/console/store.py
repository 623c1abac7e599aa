"""The store: one SQLite file, one writer thread, any number of readers.

A batch's future is done only after its transaction is on disk, so whoever acknowledges it then has promised nothing
that a crash can take back. Batches that wait at the same time share one transaction.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Self, TypeAlias

from clew.console.errors import ConsoleError, StoreUnavailableError
from clew.console.model import Batch
from clew.console.retention import RetentionLimits, sweep
from clew.console.row_writer import RowWriter
from clew.console.schema import DATABASE_NAME, connect, open_database
from clew.console.text_search import FOLD_CONTAINS, fold_contains

_Write: TypeAlias = "tuple[Batch | None, Future[None]]"  # no batch: sweep

_MOST_PER_TRANSACTION = 32
_MOST_IDLE_READERS = 8
_SWEEP_AFTER_RECORDS = 50_000
_PROGRESS_STEPS = 10_000  # SQLite instructions between two looks at a query's deadline
_SWEPT = object()


class Store:
    """Keeps traces, logs and metrics in one SQLite file.

    Args:
        data_dir: folder of the database file; made when it is not there.
        retention: how long, and how much, is kept.
        max_bytes: the file may not grow past this; writes are refused then. None: as far as the disk goes.
        busy_timeout_s: seconds to wait for a lock that another process holds.
        query_timeout_s: seconds a single query may take.
        max_pending_batches: batches waiting to be written before more are refused.
        sweep_interval_s: seconds between two looks at the retention limits.
        clock_ns: gives the present in Unix nanoseconds.

    Raises:
        ConsoleError: the folder or the database file cannot be used.
        ValueError: a limit that is not above 0.

    Example:
        >>> import tempfile
        >>> with Store(tempfile.mkdtemp()) as store:
        ...     store.add(Batch()).result(timeout=10)
    """

    def __init__(
        self,
        data_dir: Path | str,
        *,
        retention: RetentionLimits | None = None,
        max_bytes: int | None = None,
        busy_timeout_s: float = 5.0,
        query_timeout_s: float = 10.0,
        max_pending_batches: int = 64,
        sweep_interval_s: float = 60.0,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        for name, value in (("busy_timeout_s", busy_timeout_s), ("query_timeout_s", query_timeout_s)):
            if not value > 0:
                raise ValueError(f"{name}={value!r} is not usable: give seconds above 0")
        retention = retention or RetentionLimits()
        if max_bytes is not None and retention.size_bytes is not None and retention.size_bytes >= max_bytes:
            raise ValueError(
                f"max_bytes={max_bytes} is not above retention.size_bytes={retention.size_bytes}: "
                "the file would be full before anything is deleted"
            )
        self._path = _database_path(Path(data_dir))
        self._retention = retention
        self._busy_timeout_s = busy_timeout_s
        self._query_timeout_s = query_timeout_s
        self._sweep_interval_s = sweep_interval_s
        self._clock_ns = clock_ns
        self._connection = open_database(self._path, busy_timeout_s=busy_timeout_s, max_bytes=max_bytes)
        self._writer = RowWriter(self._connection)
        self._waiting: queue.Queue[_Write | None] = queue.Queue(maxsize=max_pending_batches)
        self._idle_readers: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue(maxsize=_MOST_IDLE_READERS)
        self._gate = threading.Lock()  # nothing may be put in the queue behind its end mark
        self._closed = False
        self._failure: str | None = None
        self._records_since_sweep = 0
        self._sweep_at = time.monotonic()  # at once: what is too old may have waited for us to start
        self._thread = threading.Thread(target=self._run, name="clew-console-writer", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """The database file."""
        return self._path

    @property
    def failure(self) -> str | None:
        """Why the latest write or retention pass failed, or None when it worked."""
        return self._failure

    def add(self, batch: Batch) -> Future[None]:
        """Hand a batch to the writer.

        Args:
            batch: the records to store; spans that are there already are left as they are.

        Returns:
            A future that is done once the batch is on disk, or fails with StoreUnavailableError.

        Raises:
            StoreUnavailableError: the store is closed, or too many batches are waiting.
        """
        return self._enqueue(batch)

    def sweep(self) -> Future[None]:
        """Apply the retention limits now; the future is done when all that had to go is gone.

        Raises:
            StoreUnavailableError: the store is closed, or too many batches are waiting.
        """
        return self._enqueue(None)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Give a read-only connection that sees one state of the store for as long as it is held.

        Raises:
            StoreUnavailableError: the store is closed, the query takes too long, or the file cannot be read.
        """
        connection = self._reader()
        deadline = time.monotonic() + self._query_timeout_s
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _PROGRESS_STEPS)
        try:
            connection.execute("BEGIN")
            yield connection
            connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            connection.close()
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
                raise StoreUnavailableError(
                    f"the query took longer than {self._query_timeout_s:g} s: ask for a shorter time range"
                ) from error
            raise StoreUnavailableError(f"the store cannot be read: {error}") from error
        except BaseException:
            connection.close()
            raise
        connection.set_progress_handler(None, 0)
        try:
            self._idle_readers.put_nowait(connection)
        except queue.Full:
            connection.close()

    def close(self, timeout_s: float = 5.0) -> None:
        """Write what is waiting and close the file; closing twice is harmless.

        Args:
            timeout_s: seconds to wait for the writer; what it has not written by then was not acknowledged either.
        """
        with self._gate:
            if self._closed:
                return
            self._closed = True
        deadline = time.monotonic() + timeout_s
        try:
            self._waiting.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(max(0.0, deadline - time.monotonic()))
        while not self._idle_readers.empty():
            self._idle_readers.get_nowait().close()

    def _enqueue(self, batch: Batch | None) -> Future[None]:
        future: Future[None] = Future()
        with self._gate:
            if self._closed:
                raise StoreUnavailableError("the store is closed: send the data again later")
            try:
                self._waiting.put_nowait((batch, future))
            except queue.Full:
                raise StoreUnavailableError(
                    f"{self._waiting.maxsize} batches are waiting to be written: send the data again later"
                ) from None
        return future

    def _reader(self) -> sqlite3.Connection:
        if self._closed:
            raise StoreUnavailableError("the store is closed")
        try:
            return self._idle_readers.get_nowait()
        except queue.Empty:
            pass
        try:
            connection = connect(self._path, busy_timeout_s=self._busy_timeout_s, read_only=True)
        except sqlite3.Error as error:
            raise StoreUnavailableError(f"the store cannot be read: {error}") from error
        connection.create_function(FOLD_CONTAINS, 2, fold_contains, deterministic=True)
        return connection

    def _run(self) -> None:
        """Write batches until the end mark, and sweep in the pauses; the body of the writer thread."""
        steps: Iterator[None] | None = None
        while True:
            group = self._next_group(0.0 if steps else max(0.0, self._sweep_at - time.monotonic()))
            if group is None:
                break
            self._handle(group)
            if steps is None and time.monotonic() >= self._sweep_at:
                steps = self._sweep_steps()
            if steps is not None and next(steps, _SWEPT) is _SWEPT:
                steps = None
                self._records_since_sweep = 0
                self._sweep_at = time.monotonic() + self._sweep_interval_s
        self._connection.close()

    def _next_group(self, timeout_s: float) -> list[_Write] | None:
        """Return what is waiting, at most a transaction's worth; nothing after the timeout; None at the end."""
        try:
            first = self._waiting.get(timeout=timeout_s) if timeout_s else self._waiting.get_nowait()
        except queue.Empty:
            return []
        if first is None:
            return None
        group = [first]
        while len(group) < _MOST_PER_TRANSACTION:
            try:
                item = self._waiting.get_nowait()
            except queue.Empty:
                break
            if item is None:
                self._waiting.put(None)  # the end mark was last and nothing follows it, so it is last again
                break
            group.append(item)
        return group

    def _handle(self, group: list[_Write]) -> None:
        """Write a group's batches, then sweep if one of the group asks for it."""
        # A sender that went away has cancelled its future; one that is running can be cancelled no more.
        wanted = [(batch, future) for batch, future in group if future.set_running_or_notify_cancel()]
        writes = [(batch, future) for batch, future in wanted if batch is not None]
        if len(writes) > 1:
            try:
                self._write([batch for batch, _ in writes])
                _finish([future for _, future in writes])
                writes = []
            except Exception as error:  # the writer must outlive any batch
                self._writer.forget()
                if _is_locked(error):  # waiting out the lock for each of them would take minutes
                    for _, future in writes:
                        self._fail(future, error)
                    writes = []
        for batch, future in writes:  # alone, or one of them does not go in: which one shows by writing each alone
            self._write_alone(batch, future)
        for wanted_batch, future in wanted:
            if wanted_batch is None:
                self._sweep_to_the_end(future)

    def _write_alone(self, batch: Batch, future: Future[None]) -> None:
        try:
            try:
                self._write([batch])
            except sqlite3.IntegrityError:  # a remembered row is gone: another process swept it
                self._writer.forget()
                self._write([batch])
        except Exception as error:  # the writer must outlive any batch
            self._writer.forget()
            self._fail(future, error)
        else:
            _finish([future])

    def _fail(self, future: Future[None], error: Exception) -> None:
        if not isinstance(error, sqlite3.Error):  # not the disk but the batch: trying again is no use
            future.set_exception(error)
            return
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            self._sweep_at = time.monotonic()  # there may be something to make room with
        self._failure = f"the store cannot write: {error}"
        unavailable = StoreUnavailableError(f"the store cannot write: {error}; send the data again later")
        unavailable.__cause__ = error
        future.set_exception(unavailable)

    def _write(self, batches: list[Batch]) -> None:
        received_ns = self._clock_ns()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for batch in batches:
                self._writer.write(batch, received_ns)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._failure = None
        self._records_since_sweep += sum(map(len, batches))
        if self._records_since_sweep > _SWEEP_AFTER_RECORDS:
            self._sweep_at = time.monotonic()

    def _sweep_steps(self) -> Iterator[None]:
        try:
            yield from sweep(self._connection, self._retention, self._clock_ns())
            # Nothing has to be forgotten while nothing was deleted, but knowing that is not worth the code.
            self._writer.forget()
        except sqlite3.Error as error:
            self._writer.forget()
            self._failure = f"the store cannot delete what is too old: {error}"

    def _sweep_to_the_end(self, future: Future[None]) -> None:
        for _ in self._sweep_steps():
            pass
        _finish([future])


def _finish(futures: list[Future[None]]) -> None:
    for future in futures:
        future.set_result(None)


def _is_locked(error: Exception) -> bool:
    return getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _database_path(data_dir: Path) -> Path:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConsoleError(
            f"the console's data folder {data_dir} cannot be made: {error.strerror or error}; "
            "give another with CLEW_CONSOLE_DATA_DIR"
        ) from error
    return data_dir / DATABASE_NAME
