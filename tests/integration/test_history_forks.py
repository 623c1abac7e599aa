"""A process that forks while its threads write to the history: its children write as well."""

from __future__ import annotations

import os
import subprocess
import sys

CHILDREN = 12

FORKS = """
import os, sys, threading, time
from sqlalchemy import text
from clew.history.database import Database

database = Database(os.environ["CLEW_DATABASE_URL"])
with database.write() as connection:
    connection.execute(text("CREATE TABLE forks (child INTEGER)"))
over = threading.Event()

def keep_writing():
    while not over.is_set():
        with database.write() as connection:
            connection.execute(text("INSERT INTO forks VALUES (-1)"))
            over.wait(0.01)

writers = [threading.Thread(target=keep_writing, daemon=True) for _ in range(2)]
for writer in writers:
    writer.start()
children = []
for number in range(int(sys.argv[1])):
    over.wait(0.005)
    child = os.fork()
    if child == 0:
        try:
            with database.write() as connection:
                connection.execute(text("INSERT INTO forks VALUES (:number)"), {"number": number})
        finally:
            os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
over.set()
for writer in writers:
    writer.join()
with database.read() as connection:
    print(connection.scalar(text("SELECT count(*) FROM forks WHERE child >= 0")))
"""


def test_children_write_to_what_their_parent_was_writing_to(database_url: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKS, str(CHILDREN)],
        env={**os.environ, "CLEW_DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(CHILDREN), done.stderr
