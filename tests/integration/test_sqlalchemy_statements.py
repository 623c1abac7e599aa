"""SQLAlchemy over real SQLite files, by the version that is installed and by the other one of 2.0 and 2.1."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table, create_engine, event, insert, select, text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import create_async_engine

import clew
from clew.instrumentation import sqlalchemy as drop_in
from clew.testing import CapturedTelemetry
from tests.integration.library_versions import folder_with

SECRET = "planted-4711"
ROOT = Path(__file__).parents[2]
# The last releases of each line that were there when this was written
OTHER_VERSION = "2.0.58" if sqlalchemy.__version__.startswith("2.1") else "2.1.9"

users = Table("users", MetaData(), Column("id", Integer, primary_key=True), Column("name", String, unique=True))


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Any]:
    made = create_engine(f"sqlite:///{tmp_path / 'app.sqlite'}")
    users.metadata.create_all(made)
    assert clew.instrument(clew.instrument(made)) is made
    yield made
    made.dispose()


def names(captured: CapturedTelemetry) -> list[str]:
    return [span.name for span in captured.spans]


def test_a_statement_is_a_query_of_what_sent_it(captured_telemetry: CapturedTelemetry, engine: Any) -> None:
    with clew.span("request"), engine.begin() as connection:
        connection.execute(insert(users), {"name": SECRET})
        assert connection.execute(select(users.c.name).where(users.c.name == SECRET)).scalar_one() == SECRET
        connection.execute(text(f"UPDATE users SET name = 'new-{SECRET}' WHERE id = 1 /* {SECRET} */"))
    assert names(captured_telemetry) == ["INSERT users", "SELECT users", "UPDATE users", "request"]
    request, query = captured_telemetry.span("request"), captured_telemetry.span("SELECT users")
    assert (query.parent_id, query.kind) == (request.span_id, "client")
    assert query.attributes["db.system.name"] == "sqlite"
    assert query.attributes["db.query.text"].startswith("SELECT users.name FROM users WHERE users.name = ")
    assert captured_telemetry.metric("db.client.operation.duration", db__operation__name="INSERT").count == 1
    everything = repr(captured_telemetry.spans) + repr(captured_telemetry.logs)
    assert SECRET not in everything
    assert "app.sqlite" not in everything


def test_many_rows_are_one_query(captured_telemetry: CapturedTelemetry, engine: Any) -> None:
    with clew.span("request"), engine.begin() as connection:
        connection.execute(insert(users), [{"name": str(number)} for number in range(3)])
    assert captured_telemetry.span("INSERT users").attributes["db.operation.batch.size"] == 3


def test_a_poll_of_nobodys_makes_no_trace(captured_telemetry: CapturedTelemetry, engine: Any) -> None:
    with engine.connect() as connection:
        connection.execute(select(users))
    assert names(captured_telemetry) == []


def test_an_error_has_its_code_and_no_value(captured_telemetry: CapturedTelemetry, engine: Any) -> None:
    with clew.span("request"), engine.connect() as connection:
        connection.execute(insert(users), {"name": SECRET})
        with pytest.raises(IntegrityError):
            connection.execute(insert(users), {"name": SECRET})
        with pytest.raises(OperationalError):
            connection.execute(text(f"SELECT '{SECRET}' FROM nowhere"))
        assert connection.execute(select(users.c.id)).all() == [(1,)]
    failed = [span for span in captured_telemetry.spans if span.status == "error"]
    assert [span.name for span in failed] == ["INSERT users", "SELECT nowhere"]
    assert [span.attributes["error.type"] for span in failed] == ["IntegrityError", "OperationalError"]
    assert failed[0].attributes["db.response.status_code"] == "SQLITE_CONSTRAINT_UNIQUE"
    assert SECRET not in repr(captured_telemetry.spans) + repr(captured_telemetry.logs)


def test_an_asyncio_engine(captured_telemetry: CapturedTelemetry, tmp_path: Path) -> None:
    async def main() -> None:
        engine = clew.instrument(create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app.sqlite'}"))
        async with engine.begin() as connection:
            await connection.run_sync(users.metadata.create_all)
        with clew.span("request"):
            async with engine.begin() as connection:
                await connection.execute(insert(users), {"name": "a"})
            async with engine.connect() as connection:
                assert (await connection.execute(select(users.c.name))).scalar_one() == "a"
        await engine.dispose()

    asyncio.run(main())
    assert names(captured_telemetry) == ["INSERT users", "SELECT users", "request"]
    assert {span.parent_id for span in captured_telemetry.spans[:-1]} == {captured_telemetry.span("request").span_id}


def test_one_statement_has_one_span_however_it_is_instrumented(
    captured_telemetry: CapturedTelemetry, engine: Any, tmp_path: Path
) -> None:
    drop_in.instrument_all()
    drop_in.instrument_all()
    try:
        other = create_engine(f"sqlite:///{tmp_path / 'app.sqlite'}")
        with clew.span("request"):
            for each in (engine, other, clew.instrument(other)):
                with each.connect() as connection:
                    connection.execute(select(users))
        other.dispose()
    finally:
        for name, listener in drop_in._LISTENERS:
            event.remove(Engine, name, listener)
    assert names(captured_telemetry) == ["SELECT users"] * 3 + ["request"]


@pytest.mark.skipif("CLEW_OTHER_SQLALCHEMY" in os.environ, reason="this is the other version")
def test_the_other_version_of_sqlalchemy() -> None:
    """Run this file again with the other of 2.0 and 2.1."""
    folder = folder_with(f"sqlalchemy=={OTHER_VERSION}")
    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(Path(__file__).relative_to(ROOT))],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(folder), "CLEW_OTHER_SQLALCHEMY": OTHER_VERSION, "CI": "false"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert tests.returncode == 0, tests.stdout[-4000:]
    assert "7 passed" in tests.stdout, tests.stdout[-1000:]


def test_the_version_is_the_one_that_was_asked_for() -> None:
    assert sqlalchemy.__version__ == os.environ.get("CLEW_OTHER_SQLALCHEMY", sqlalchemy.__version__)
