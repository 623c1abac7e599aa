"""The database file: its tables, their version, and how a connection to it is opened.

Source: https://sqlite.org/wal.html, https://sqlite.org/pragma.html
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from clew.console.errors import ConsoleError

SCHEMA_VERSION = 1
DATABASE_NAME = "console.sqlite3"

_APPLICATION_ID = 0x636C6577  # "clew", so that another program's file is not taken for ours

# Traces are counted by triggers, because a trigger fires only for rows that were really inserted: a span that is
# delivered twice is counted once.
_TABLES = """
CREATE TABLE resources (
  id INTEGER PRIMARY KEY, identity BLOB NOT NULL UNIQUE,
  service TEXT NOT NULL, attributes TEXT NOT NULL, schema_url TEXT NOT NULL);
CREATE INDEX resources_by_service ON resources (service);

CREATE TABLE scopes (
  id INTEGER PRIMARY KEY, identity BLOB NOT NULL UNIQUE,
  resource_id INTEGER NOT NULL REFERENCES resources (id),
  name TEXT NOT NULL, version TEXT NOT NULL, attributes TEXT NOT NULL, schema_url TEXT NOT NULL);
CREATE INDEX scopes_by_resource ON scopes (resource_id);

CREATE TABLE traces (
  trace_id BLOB PRIMARY KEY,
  start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL,
  span_count INTEGER NOT NULL, error_count INTEGER NOT NULL,
  received_ns INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX traces_by_start ON traces (start_ns);
CREATE INDEX traces_by_received ON traces (received_ns);

CREATE TABLE spans (
  id INTEGER PRIMARY KEY,
  trace_id BLOB NOT NULL, span_id BLOB NOT NULL, parent_span_id BLOB,
  trace_state TEXT NOT NULL, flags INTEGER NOT NULL, name TEXT NOT NULL, kind INTEGER NOT NULL,
  start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL,
  status_code INTEGER NOT NULL, status_message TEXT NOT NULL,
  attributes TEXT NOT NULL, events TEXT NOT NULL,
  dropped_attributes INTEGER NOT NULL, dropped_events INTEGER NOT NULL, dropped_links INTEGER NOT NULL,
  scope_id INTEGER NOT NULL REFERENCES scopes (id),
  received_ns INTEGER NOT NULL,
  UNIQUE (trace_id, span_id));
CREATE INDEX spans_by_scope ON spans (scope_id, name);
CREATE INDEX spans_with_errors ON spans (start_ns) WHERE status_code = 2;

CREATE TABLE span_links (
  trace_id BLOB NOT NULL, span_id BLOB NOT NULL, position INTEGER NOT NULL,
  linked_trace_id BLOB NOT NULL, linked_span_id BLOB NOT NULL,
  trace_state TEXT NOT NULL, flags INTEGER NOT NULL, attributes TEXT NOT NULL, dropped_attributes INTEGER NOT NULL,
  PRIMARY KEY (trace_id, span_id, position),
  FOREIGN KEY (trace_id, span_id) REFERENCES spans (trace_id, span_id) ON DELETE CASCADE) WITHOUT ROWID;
CREATE INDEX span_links_by_target ON span_links (linked_trace_id);

CREATE TRIGGER span_arrives AFTER INSERT ON spans BEGIN
  INSERT INTO traces (trace_id, start_ns, end_ns, span_count, error_count, received_ns)
  VALUES (new.trace_id, new.start_ns, new.end_ns, 1, new.status_code = 2, new.received_ns)
  ON CONFLICT (trace_id) DO UPDATE SET
    start_ns = min(start_ns, excluded.start_ns), end_ns = max(end_ns, excluded.end_ns),
    span_count = span_count + 1, error_count = error_count + excluded.error_count,
    received_ns = max(received_ns, excluded.received_ns);
END;

CREATE TABLE logs (
  id INTEGER PRIMARY KEY,
  at_ns INTEGER NOT NULL, time_ns INTEGER NOT NULL, observed_ns INTEGER NOT NULL,
  severity_number INTEGER NOT NULL, severity_text TEXT NOT NULL,
  body_text TEXT NOT NULL, body_json TEXT,
  attributes TEXT NOT NULL, dropped_attributes INTEGER NOT NULL, flags INTEGER NOT NULL,
  trace_id BLOB, span_id BLOB, event_name TEXT NOT NULL,
  scope_id INTEGER NOT NULL REFERENCES scopes (id),
  received_ns INTEGER NOT NULL);
CREATE INDEX logs_by_time ON logs (at_ns);
CREATE INDEX logs_by_trace ON logs (trace_id, at_ns) WHERE trace_id IS NOT NULL;
CREATE INDEX logs_by_scope ON logs (scope_id, at_ns);

CREATE TABLE metrics (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, unit TEXT NOT NULL,
  description TEXT NOT NULL, temporality TEXT NOT NULL, is_monotonic INTEGER NOT NULL,
  UNIQUE (name, type, unit, temporality, is_monotonic));

CREATE TABLE series (
  id INTEGER PRIMARY KEY, identity BLOB NOT NULL UNIQUE,
  metric_id INTEGER NOT NULL REFERENCES metrics (id), scope_id INTEGER NOT NULL REFERENCES scopes (id),
  attributes TEXT NOT NULL);
CREATE INDEX series_by_metric ON series (metric_id);
CREATE INDEX series_by_scope ON series (scope_id);

CREATE TABLE points (
  id INTEGER PRIMARY KEY, series_id INTEGER NOT NULL REFERENCES series (id),
  time_ns INTEGER NOT NULL, start_ns INTEGER NOT NULL,
  value TEXT NOT NULL, flags INTEGER NOT NULL, exemplars TEXT NOT NULL,
  received_ns INTEGER NOT NULL,
  UNIQUE (series_id, time_ns));
"""


def open_database(path: Path, *, busy_timeout_s: float, max_bytes: int | None) -> sqlite3.Connection:
    """Open the console's database for writing, and create its tables when the file is new.

    Args:
        path: the database file; its folder must exist.
        busy_timeout_s: seconds to wait for another process's lock.
        max_bytes: largest size of the file in bytes, or None for what the disk holds.

    Raises:
        ConsoleError: the file cannot be opened, is not a console database, or comes from a newer version.
    """
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # telemetry is for its owner's eyes
        connection = connect(path, busy_timeout_s=busy_timeout_s)
    except (OSError, sqlite3.Error) as error:
        raise ConsoleError(
            f"the console's database {path} cannot be opened for writing: {error}; "
            "give a folder you may write to with CLEW_CONSOLE_DATA_DIR"
        ) from error
    try:
        _prepare(connection, path, max_bytes)
    except sqlite3.Error as error:
        connection.close()
        mend = "move it aside" if _is_damage(error) else "check that its folder is writable and the disk is not full"
        raise ConsoleError(f"the console's database {path} cannot be used: {error}; {mend}") from error
    except BaseException:
        connection.close()
        raise
    return connection


def connect(path: Path, *, busy_timeout_s: float, read_only: bool = False) -> sqlite3.Connection:
    """Return a connection with explicit transactions, whatever thread it is used from next.

    Args:
        path: the database file.
        busy_timeout_s: seconds to wait for a lock.
        read_only: refuse statements that change anything.

    Raises:
        sqlite3.Error: the file cannot be opened.
    """
    connection = sqlite3.connect(path, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA foreign_keys = ON")
    if read_only:
        connection.execute("PRAGMA query_only = ON")
    return connection


def _prepare(connection: sqlite3.Connection, path: Path, max_bytes: int | None) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if (tables or application) and application != _APPLICATION_ID:
        raise ConsoleError(f"{path} is a database of another program: give another folder with CLEW_CONSOLE_DATA_DIR")
    if version > SCHEMA_VERSION:
        raise ConsoleError(
            f"{path} was written by a newer clew (schema {version}; this one reads up to {SCHEMA_VERSION}): "
            "upgrade clew, or give another folder with CLEW_CONSOLE_DATA_DIR"
        )
    if not tables:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # lets retention give space back; only before any table
    connection.execute("PRAGMA journal_mode = WAL")
    # FULL, because an acknowledged batch should survive a power cut too; the writer groups batches to pay for it once.
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA journal_size_limit = {16 * 1024 * 1024}")
    if not tables:
        # One transaction, so that a crash leaves either no tables or all; a second process waits here for the first.
        connection.execute("BEGIN IMMEDIATE")
        if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            for statement in _statements(_TABLES):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    if max_bytes is not None:
        (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
        connection.execute(f"PRAGMA max_page_count = {max(1, max_bytes // page_bytes)}")


def _statements(script: str) -> list[str]:
    statements: list[str] = []
    current = ""
    for line in script.splitlines(keepends=True):
        current += line
        if sqlite3.complete_statement(current):
            statements.append(current)
            current = ""
    return statements


def _is_damage(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
