"""What is told of an SQL statement, and what never is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clew.instrumentation.statement import MAX_TEXT_LENGTH, summarise

OPERATIONS = [
    ("SELECT 1", "SELECT", ""),
    ("  select * from users", "SELECT", "users"),
    ("(SELECT id FROM a) UNION (SELECT id FROM b)", "SELECT", "a"),
    ('SELECT * FROM "Order Items" WHERE id = %(id_1)s', "SELECT", "Order Items"),
    ("SELECT EXTRACT(YEAR FROM placed_at) FROM shop.orders", "SELECT", "shop.orders"),
    ("SELECT * FROM (SELECT * FROM inner_table) AS x", "SELECT", "inner_table"),
    ("SELECT a FROM x JOIN y ON x.id = y.id FOR UPDATE", "SELECT", "x"),
    ("INSERT INTO users (name) VALUES (?)", "INSERT", "users"),
    ("INSERT INTO a SELECT * FROM b", "INSERT", "a"),
    ("UPDATE ONLY users SET name = ?", "UPDATE", "users"),
    ("DELETE FROM [dbo] . [users]", "DELETE", "dbo.users"),
    ("WITH recent AS (SELECT * FROM orders) SELECT * FROM recent", "SELECT", "recent"),
    ("WITH gone AS (SELECT 1) DELETE FROM users", "DELETE", "users"),
    ("/* from ORM */ -- note\nSELECT * FROM users", "SELECT", "users"),
    ("CREATE TABLE IF NOT EXISTS users (id INT)", "CREATE", "users"),
    ("CREATE INDEX ix_a ON users (a)", "CREATE", "users"),
    ("DROP TABLE IF EXISTS users", "DROP", "users"),
    ("PRAGMA main.table_info('users')", "PRAGMA", ""),
    ("hunter2 is no statement", "OTHER", ""),
    ("", "OTHER", ""),
]


@pytest.mark.parametrize(("statement", "operation", "table"), OPERATIONS, ids=[row[0][:40] for row in OPERATIONS])
def test_what_it_does_and_to_which_table(statement: str, operation: str, table: str) -> None:
    summary = summarise(statement)
    assert (summary.operation, summary.table) == (operation, table)


TEXTS = [
    (
        "",
        "SELECT * FROM t WHERE a = 'x' AND b = -1.5e3 AND c = 0xFF",
        "SELECT * FROM t WHERE a = ? AND b = ? AND c = ?",
    ),
    ("", "SELECT t1.c2 FROM t1 WHERE id = :id_1 AND x = $1", "SELECT t1.c2 FROM t1 WHERE id = :id_1 AND x = $1"),
    ("", "SELECT 'it''s' /* secret */ -- secret", "SELECT ?"),
    ("", "SELECT * FROM t WHERE id IN (?, ?, ?)", "SELECT * FROM t WHERE id IN (?)"),
    ("", "SELECT * FROM t WHERE id IN (1, 2)", "SELECT * FROM t WHERE id IN (?)"),
    ("postgresql", r"SELECT E'it\'s secret' , 'C:\' , 'x'", "SELECT ? , ? , ?"),
    ("postgresql", "SELECT $tag$ it's $$ $tag$, $$x$$", "SELECT ?, ?"),
    ("postgresql", "SELECT a FROM t WHERE id IN (%(id_1_1)s, %(id_1_2)s)", "SELECT a FROM t WHERE id IN (?)"),
    ("mysql", r"""SELECT 'it\'s secret', "also" FROM `t`""", "SELECT ?, ? FROM `t`"),
    ("sqlite", 'SELECT "name" FROM t WHERE name = "bob smith"', 'SELECT "name" FROM t WHERE name = ?'),
    ("", "SELECT 'cut off in the mid", "SELECT ?"),
]


@pytest.mark.parametrize(("dialect", "statement", "text"), TEXTS, ids=[row[2][:40] for row in TEXTS])
def test_the_text_has_no_values(dialect: str, statement: str, text: str) -> None:
    assert summarise(statement, dialect).text == text


@given(value=st.text(max_size=200), after=st.text(alphabet="abc '\\", max_size=20))
def test_no_literal_survives(value: str, after: str) -> None:
    literal = "'" + (value + "planted").replace("'", "''") + "'"
    assert (
        "planted" not in summarise(f"SELECT * FROM t WHERE a = {literal} AND b = '{after.replace(chr(39), '')}'").text
    )


@given(st.text(max_size=300), st.sampled_from(["", "sqlite", "postgresql", "mysql", "mssql", "oracle"]))
def test_any_text_can_be_read(statement: str, dialect: str) -> None:
    assert len(summarise(statement, dialect).text) <= MAX_TEXT_LENGTH


def test_a_huge_statement_is_cut() -> None:
    rows = ", ".join(f"({number}, 'planted')" for number in range(500_000))
    summary = summarise(f"INSERT INTO users (id, name) VALUES {rows}")
    assert len(summary.text) <= MAX_TEXT_LENGTH
    assert "planted" not in summary.text
    assert (summary.operation, summary.table) == ("INSERT", "users")
