"""The database of the durable records: how it is connected to, and whether its tables are those that this version writes.

Sources: https://www.sqlite.org/wal.html, https://www.postgresql.org/docs/current/libpq-connect.html
"""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from clew import clock
from clew.diagnostics import ClewError
from clew.history.forking import uses
from clew.history.migrations import HEAD
from clew.history.patience import connection_class

VERSION_TABLE: Final = "clew_alembic_version"
_WRITES: Final = "clew_writes"
_UPGRADE_LOCK: Final = 0x636C6577  # "clew", as the key of PostgreSQL's advisory lock
_UPGRADE_PATIENCE_S: Final = 600.0
_UPGRADE_LOCK_WAIT_S: Final = 60.0
_CONNECT_TIMEOUT_S: Final = 3
_BUSY_TIMEOUT_S: Final = 5.0
_BUSY_PAUSE_S: Final = (0.0005, 0.005)


class DatabaseError(ClewError):
    """The database of the durable records can't be used: the message says why, and the mend."""


class Database:
    """A database by its URL. Nothing is connected to before it is used; a forked child connects anew.

    Args:
        url: ``sqlite:///...`` or ``postgresql+psycopg://...``, as :meth:`clew.settings.Settings.history_url` returns it.
        patience_s: how long an answer is waited for, in seconds, before the connection is given up.

    Raises:
        DatabaseError: the URL can't be read, or its driver is not installed.
    """

    def __init__(self, url: str, *, patience_s: float = 35.0) -> None:
        self._inherited: list[object] = []
        try:
            self.url: URL = make_url(url)
            self.engine = _engine(self.url, patience_s)
        except ModuleNotFoundError as error:
            raise DatabaseError(
                f"{error.name} is missing, which PostgreSQL needs: pip install 'clew[postgresql]'"
            ) from error
        except SQLAlchemyError as error:
            raise DatabaseError(f"CLEW_DATABASE_URL can't be read: {error}") from error
        self._file = self._file_id()
        known = weakref.ref(self)

        def forget_connections() -> None:
            if (living := known()) is not None:
                living._leave_connections()

        os.register_at_fork(after_in_child=forget_connections)

    @property
    def is_sqlite(self) -> bool:
        """Tell whether it is a file."""
        return self.url.get_backend_name() == "sqlite"

    def __str__(self) -> str:
        """Return the URL without its password."""
        return self.url.render_as_string(hide_password=True)

    def close(self) -> None:
        """Close the connections that nobody uses; it may be used on."""
        self.engine.dispose()

    def was_replaced(self) -> bool:
        """Tell whether SQLite's file is another one than before: what is written to a deleted file is lost."""
        before, self._file = self._file, self._file_id()
        if before is None or before == self._file:
            return False
        self.engine.dispose()
        return True

    def _file_id(self) -> tuple[int, int] | None:
        if not self.is_sqlite or not self.url.database:
            return None
        try:
            found = Path(self.url.database).stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _leave_connections(self) -> None:
        # Closing a copy of the parent's connection could end it for the parent, and SQLite's file with it
        self._inherited.append(self.engine.pool)
        self.engine.dispose(close=False)

    @contextmanager
    def write(self, *, wait_s: float = _BUSY_TIMEOUT_S) -> Iterator[Connection]:
        """Return a connection within a transaction that will write: it is committed at the end of the block.

        Args:
            wait_s: how long others that write to SQLite are waited for, in seconds.
        """
        with uses, self.engine.connect().execution_options(**{_WRITES: wait_s}) as connection, connection.begin():
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Return a connection within a transaction that sees one state of the database."""
        with uses, self.engine.connect() as connection, connection.begin():
            yield connection

    def current(self) -> str | None:
        """Return the revision of the tables; ``None`` where there are none."""
        with self.read() as connection:
            return _revision(connection)

    def ensure(self, *, auto_upgrade: bool) -> None:
        """Make the tables those that this version writes, where that may be done without asking.

        Args:
            auto_upgrade: may be done in PostgreSQL, too.

        Raises:
            DatabaseError: it has to be asked for, or the tables are newer than this version of clew.
        """
        if self.is_sqlite and self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        revision = self.current()
        if revision == HEAD:
            return
        if not (self.is_sqlite or auto_upgrade):
            raise DatabaseError(
                f"the tables in {self} are {f'at revision {revision}' if revision else 'not there yet'}, and clew needs "
                f"{HEAD}: run 'clew db upgrade', or set CLEW_DATABASE_AUTO_UPGRADE=true"
            )
        self.upgrade()

    def upgrade(self, revision: str = "head") -> None:
        """Bring the tables to a newer revision, one process at a time.

        Raises:
            DatabaseError: they are newer than this version of clew knows.
        """
        self._migrate("upgrade", revision)

    def downgrade(self, revision: str) -> None:
        """Take the tables back to an older revision; what only newer tables have is lost."""
        self._migrate("downgrade", revision)

    def differences(self) -> list[str]:
        """Return how the tables differ from what this version writes; an empty list where they do not.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: the database can't be read.
        """
        from alembic.autogenerate import compare_metadata
        from alembic.migration import MigrationContext

        from clew.history.models import Base

        with self.read() as connection:
            context = MigrationContext.configure(
                connection, opts={"version_table": VERSION_TABLE, "include_name": _is_ours}
            )
            return [str(difference) for difference in compare_metadata(context, Base.metadata)]

    def _migrate(self, verb: Literal["upgrade", "downgrade"], revision: str) -> None:
        quiet = logging.getLogger("alembic")
        if quiet.level == logging.NOTSET:
            # It tells of each of its own parts, already while it is imported
            quiet.setLevel(logging.WARNING)
        from alembic import command
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
        config.set_main_option("path_separator", "os")
        with self.write(wait_s=_UPGRADE_LOCK_WAIT_S) as connection:
            if not self.is_sqlite:
                # Of this transaction; changing large tables takes its time
                driver: Any = connection.connection.driver_connection
                driver.patience_s = _UPGRADE_PATIENCE_S
                connection.execute(text("SET LOCAL statement_timeout = 0"))
                connection.execute(text(f"SET LOCAL lock_timeout = '{_UPGRADE_LOCK_WAIT_S:.0f}s'"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _UPGRADE_LOCK})
            found = _revision(connection)
            config.attributes["connection"] = connection
            try:
                getattr(command, verb)(config, revision)
            except CommandError as error:
                raise DatabaseError(
                    f"the tables in {self} are at revision {found}, which this version of clew does not know: upgrade clew"
                ) from error


def _is_ours(name: str | None, kind: str, _parents: Any) -> bool:
    from clew.history.models import Base

    # The database may be the app's own, with tables of other names
    return kind != "table" or name in Base.metadata.tables


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    found: str | None = connection.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))  # noqa: S608 - a constant
    return found


def _begin_to_write(connection: Connection, wait_s: float) -> None:
    """Wait for other processes by looking again soon: SQLite itself looks ever more seldom, and the one that waits longest is last."""
    driver: Any = connection.connection.driver_connection
    until = clock.monotonic_s() + wait_s
    driver.execute("PRAGMA busy_timeout = 0")
    try:
        while True:
            try:
                driver.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or clock.monotonic_s() > until:
                    raise OperationalError("BEGIN IMMEDIATE", None, error) from error
                time.sleep(random.uniform(*_BUSY_PAUSE_S))  # noqa: S311 - spreads the attempts
            else:
                return
    finally:
        driver.execute(f"PRAGMA busy_timeout = {int(_BUSY_TIMEOUT_S * 1000)}")


def _engine(url: URL, patience_s: float) -> Engine:
    if url.get_backend_name() != "sqlite":
        engine = create_engine(
            url,
            pool_size=2,
            max_overflow=8,
            pool_timeout=_BUSY_TIMEOUT_S,
            connect_args={
                "connect_timeout": _CONNECT_TIMEOUT_S,
                # A peer that is gone without a word is noticed
                "tcp_user_timeout": 5_000,
                "keepalives_idle": 30,
                "application_name": "clew",
                "options": "-c statement_timeout=30000 -c lock_timeout=10000 -c timezone=UTC",
            },
        )

        @event.listens_for(engine, "do_connect")
        def _connect(_dialect: object, _record: object, arguments: Any, options: Any) -> Any:
            connection = connection_class().connect(*arguments, **options)
            connection.patience_s = patience_s
            return connection

        @event.listens_for(engine, "checkout")
        def _taken(connection: Any, _record: object, _proxy: object) -> None:
            connection.patience_s = patience_s

        return engine
    engine = create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: object) -> None:
        # Transactions are begun below: the driver begins them too late to lock what will be written
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        wait_s = connection.get_execution_options().get(_WRITES)
        if wait_s is not None:
            _begin_to_write(connection, wait_s)
        else:
            connection.exec_driver_sql("BEGIN")

    return engine
