"""Databases by SQLAlchemy: whether they answer, how fast, how large they are, and whether their tables are as the code wants."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from clew import clock
from clew.health.check import Check, HealthResult, Status
from clew.health.checks.telemetry import Losses

# Sizes and tables are no matter of seconds, and are costlier to find out
_SURVEY_S: Final = 60.0


def database(
    engine: Any,
    *,
    name: str = "database",
    migrations: str | os.PathLike[str] | None = None,
    critical: bool = True,
    timeout_s: float = 2.0,
) -> Check:
    """Return a check of a database: failed when it does not answer, degraded when it is slow or its migrations are behind.

    It uses the engine's own pool, so that a pool without a free connection is a failure, too.

    Args:
        engine: an engine, or asyncio engine, of SQLAlchemy 2.
        name: the check's name.
        migrations: the folder of Alembic's scripts; the database must be at their head.
        critical: see :class:`~clew.health.check.Check`.
        timeout_s: the same; above half of it, an answer is slow.

    Raises:
        TypeError: it is no engine.

    Example:
        >>> from sqlalchemy import create_engine
        >>> database(create_engine("sqlite://")).name
        'database'
    """
    state = partial(_migrations, os.fspath(migrations)) if migrations is not None else None
    look = _Database(engine, state, "alembic upgrade head", timeout_s)
    probe = look.ask_async if hasattr(engine, "sync_engine") else look.ask
    return Check(name=name, probe=probe, critical=critical, timeout_s=timeout_s)


def history(*, name: str = "history", timeout_s: float = 2.0) -> Check:
    """Return a check of the database of the durable records. It is not critical: without it, rows wait.

    Args:
        name: the check's name.
        timeout_s: see :class:`~clew.health.check.Check`.
    """
    return Check(name=name, probe=_History(timeout_s), timeout_s=timeout_s)


class _History:
    """Asks the database of the recorder, once there is one."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._losses = Losses()
        self._known: tuple[Any, _Database] | None = None

    def __call__(self) -> HealthResult:
        from clew.history.migrations import HEAD
        from clew.history.recorder import recorder

        writer = recorder()
        if writer is None:
            return HealthResult(text="off")
        database = writer.database
        if database.is_sqlite and not Path(database.url.database or "").exists():
            return HealthResult(text="nothing is written yet")
        if self._known is None or self._known[0] is not database:
            upgrades_itself = database.is_sqlite or writer.settings.database_auto_upgrade

            def migrations(_: Any) -> str:
                if database.current() == HEAD:
                    return "at head"
                return "with the next row" if upgrades_itself else "behind"

            look = _Database(database.engine, migrations, "clew db upgrade", self._timeout_s)
            self._known = (database, look)
        found, account = self._known[1].ask(), writer.account()
        lost = sum(account.dropped.values())
        data = {**found.data, "rows_waiting": account.pending, "rows_lost": lost}
        if self._losses.of_late(lost):
            return HealthResult(status="degraded", text=f"{lost} rows lost since the start, some of late", data=data)
        return HealthResult(status=found.status, text=found.text, data=data)


class _Database:
    """Asks for a sign of life each time, and for the rest now and then."""

    def __init__(self, engine: Any, migrations: Callable[[Any], str] | None, mend: str, timeout_s: float) -> None:
        if not hasattr(engine, "connect") or not hasattr(engine, "dialect"):
            raise TypeError(f"a {type(engine).__qualname__} is no SQLAlchemy engine")
        self._engine = engine
        self._migrations = migrations
        self._mend = mend
        self._timeout_s = timeout_s
        self._survey: dict[str, Any] = {}
        self._surveyed_s: float | None = None

    def ask(self) -> HealthResult:
        """Ask by a connection of an engine."""
        started_s = clock.monotonic_s()
        with self._engine.connect() as connection:
            return self._look(connection, started_s)

    async def ask_async(self) -> HealthResult:
        """Ask by a connection of an asyncio engine."""
        started_s = clock.monotonic_s()
        async with self._engine.connect() as connection:
            result: HealthResult = await connection.run_sync(self._look, started_s)
            return result

    def _look(self, connection: Any, started_s: float) -> HealthResult:
        from sqlalchemy import text

        connection.execute(text("SELECT 1")).scalar_one()
        latency_s = clock.monotonic_s() - started_s
        if self._surveyed_s is None or clock.monotonic_s() - self._surveyed_s >= _SURVEY_S:
            self._survey = _survey(connection, self._migrations)
            self._surveyed_s = clock.monotonic_s()
        behind = self._survey.get("migrations") == "behind"
        status: Status = "degraded" if behind or latency_s > self._timeout_s / 2 else "ok"
        sentence = f"answered in {latency_s * 1000:.1f} ms"
        if behind:
            sentence += f"; its migrations are not at their head: {self._mend}"
            # Somebody may be about to mend it
            self._surveyed_s = None
        return HealthResult(status=status, text=sentence, data={"latency_s": latency_s, **self._survey})


def _survey(connection: Any, migrations: Callable[[Any], str] | None) -> dict[str, Any]:
    found: dict[str, Any] = {"dialect": connection.dialect.name}
    asked: dict[str, Callable[[Any], int | None]] = {"tables": _tables, "size_bytes": _size_bytes}
    for key, ask in asked.items():
        try:
            found[key] = ask(connection)
        except Exception:
            # What a user may not see is left out, and must not spoil what the transaction does next
            found[key] = None
            connection.rollback()
    if migrations is not None:
        found["migrations"] = migrations(connection)
    return found


def _tables(connection: Any) -> int:
    from sqlalchemy import inspect

    return len(inspect(connection).get_table_names())


def _size_bytes(connection: Any) -> int | None:
    from sqlalchemy import text

    statements = {
        "sqlite": "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()",
        "postgresql": "SELECT pg_database_size(current_database())",
        "mysql": "SELECT SUM(data_length + index_length) FROM information_schema.tables WHERE table_schema = DATABASE()",
    }
    statement = statements.get(connection.dialect.name)
    if statement is None:
        return None
    size = connection.execute(text(statement)).scalar()
    return int(size) if size is not None else None


def _migrations(folder: str, connection: Any) -> str:
    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", folder.replace("%", "%%"))
    wanted = set(ScriptDirectory.from_config(config).get_heads())
    present = set(MigrationContext.configure(connection).get_current_heads())
    return "at head" if present == wanted else "behind"
