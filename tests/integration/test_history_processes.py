"""Real processes write to one history: at once, forked, killed, and after one another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from clew.history.models import JobRunTotal
from tests.integration.history_rows import rows
from tests.integration.waiting import eventually

pytestmark = pytest.mark.usefixtures("spool_dir")

QUIET = {f"OTEL_{signal}_EXPORTER": "none" for signal in ("TRACES", "METRICS", "LOGS")}

PRELUDE = r"""
    import json, os, signal, sys, threading, time
    import clew
    from clew import clock
    from clew.history.ids import new_id
    from clew.history.recorder import recorder
    from clew.history.writing import Change

    clew.configure(service_name="orders")
    records = recorder()

    def start(job="digest"):
        row = records.row(id=new_id(), job=job, source="clew", status="running", started_at=clock.utc_now(), attempt=1, pid=os.getpid())
        return Change(table="job_runs", row=row)

    def end(start):
        row = {**start.row, "status": "completed", "finished_at": clock.utc_now(), "duration_s": 0.25}
        return Change(table="job_runs", row=row, verb="end")

    def tell(what):
        # In one piece: threads tell at the same time
        os.write(1, (json.dumps(what) + "\n").encode())

    def account():
        found = records.account()
        return [found.emitted, found.delivered, found.dropped, found.pending, found.replayed]
"""


def begin(script: str, **environment: str) -> subprocess.Popen[str]:
    code = textwrap.dedent(PRELUDE) + textwrap.dedent(script)
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **QUIET, **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(script: str, **environment: str) -> tuple[list[Any], str]:
    process = begin(script, **environment)
    try:
        said, complained = process.communicate(timeout=60)
    finally:
        # With what it forked, where it did not come to its end
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, complained
    return [json.loads(line) for line in said.splitlines()], complained


def test_what_is_left_at_the_end_of_a_process_is_written(database_url: str) -> None:
    run("for _ in range(50): records.record(start())\nrecords.steer(start())")
    assert len(rows(database_url)) == 51


def test_what_was_waited_for_survives_a_kill_at_any_time(database_url: str) -> None:
    working = """
        def work():
            while True:
                change = start()
                if records.steer_and_wait(change):
                    tell(change.row["id"])
        for _ in range(3):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(60)
    """
    said: list[str] = []
    for lines in (1, 40, 90):
        process = begin(working)
        assert process.stdout is not None
        said += [json.loads(process.stdout.readline()) for _ in range(lines)]
        process.kill()
        rest, _ = process.communicate()
        said += [json.loads(line) for line in rest.splitlines() if line.endswith('"')]
    assert len(said) > 130
    assert set(said) <= {row.id for row in rows(database_url)}


def test_processes_write_at_once_and_make_the_tables_at_once(database_url: str) -> None:
    working = """
        tell("there")
        sys.stdin.readline()
        runs = [start() for _ in range(100)]
        for one in runs:
            records.steer_and_wait(one)
            records.steer(end(one))
        clew.shutdown()
        tell(account())
    """
    processes = [begin(working) for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        said, complained = process.communicate(timeout=90)
        assert process.returncode == 0, complained
        assert json.loads(said.splitlines()[-1]) == [200, 200, {}, 0, 0], complained
    assert [row.status for row in rows(database_url)] == ["completed"] * 400
    assert sum(row.runs for row in rows(database_url, JobRunTotal)) == 400


def test_a_forked_child_writes_by_itself(database_url: str) -> None:
    said, complained = run(
        """
        assert records.steer(start("before")).result(20)
        waiting = [records.record(start("parent's")) for _ in range(10)]
        over = threading.Event()
        def work():
            while not over.is_set():
                records.steer_and_wait(start("parent's"))
        threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
        [thread.start() for thread in threads]
        children = []
        for _ in range(5):
            if (child := os.fork()) == 0:
                assert records.account().emitted == 0
                for _ in range(10):
                    assert records.steer(start("child's")).result(20)
                records.record(start("child's"))
                clew.shutdown()
                tell(account())
                os._exit(0)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 5
        over.set()
        [thread.join() for thread in threads]
        assert records.steer(start("after")).result(20)
        clew.shutdown()
        tell(account())
        """
    )
    *children, parent = said
    assert children == [[11, 11, {}, 0, 0]] * 5, complained
    assert parent[0] == parent[1]
    found = rows(database_url)
    assert sum(row.job == "child's" for row in found) == 55
    assert len(found) == 55 + parent[0]
    assert len({row.instance for row in found}) == 6
    assert len({row.pid for row in found}) == 6


def test_the_next_start_takes_along_what_a_killed_process_left_on_disk(tmp_path: Path) -> None:
    blocker = tmp_path / "folder"
    blocker.write_text("no folder")
    url = f"sqlite:///{blocker / 'history.db'}"
    process = begin(
        """
        for _ in range(20):
            records.steer_and_wait(start())
        while records.account().spooled < 20:
            time.sleep(0.01)
        tell(account())
        time.sleep(60)
        """,
        CLEW_DATABASE_URL=url,
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == [20, 0, {}, 20, 0]
    process.kill()
    process.communicate()
    blocker.unlink()
    said, _ = run(
        """
        assert records.steer(start()).result(20)
        clew.flush()
        tell(account())
        """,
        CLEW_DATABASE_URL=url,
    )
    assert said == [[1, 1, {}, 0, 20]]
    assert len(rows(url)) == 21


def test_a_sibling_that_reaches_the_database_takes_over(tmp_path: Path) -> None:
    blocker = tmp_path / "folder"
    blocker.write_text("no folder")
    url = f"sqlite:///{blocker / 'history.db'}"
    process = begin(
        """
        records.steer_and_wait(start())
        while records.account().spooled < 1:
            time.sleep(0.01)
        tell(account())
        sys.stdin.readline()
        clew.shutdown()
        tell(account())
        """,
        CLEW_DATABASE_URL=url,
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == [1, 0, {}, 1, 0]
    blocker.unlink()
    said, _ = process.communicate("go\n", timeout=30)
    # At the end the database is tried once more
    assert json.loads(said.splitlines()[-1]) == [1, 1, {}, 0, 0]
    assert len(rows(url)) == 1


def test_what_is_not_in_the_database_at_the_end_is_said(tmp_path: Path) -> None:
    blocker = tmp_path / "folder"
    blocker.write_text("no folder")
    _, complained = run(
        """
        records.steer_and_wait(start())
        records.record(Change(table="job_runs", row={"id": object()}))
        """,
        CLEW_DATABASE_URL=f"sqlite:///{blocker / 'history.db'}",
    )
    assert "rows of the history lost since the start: 1 refused of 2" in complained
    assert "rows of the history that wait on disk: 1 of 2" in complained


def test_an_end_by_sigterm_loses_nothing(database_url: str) -> None:
    process = begin(
        """
        assert records.steer(start()).result(20)
        for _ in range(30):
            records.record(start())
        tell("there")
        time.sleep(60)
        """
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGTERM
    assert len(rows(database_url)) == 31


def test_multiprocessing_children_write_what_they_have_at_their_end(database_url: str) -> None:
    run(
        """
        import multiprocessing
        assert records.steer(start()).result(20)
        def work():
            records.record(start("child's"))
        children = [multiprocessing.get_context("fork").Process(target=work) for _ in range(3)]
        [child.start() for child in children]
        [child.join() for child in children]
        """
    )
    eventually(lambda: len(rows(database_url)) == 4, "all rows are there")


def test_the_history_can_be_switched_off() -> None:
    code = "import clew\nfrom clew.history.recorder import recorder\nprint(recorder())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "CLEW_HISTORY": "false"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.strip() == "None"


def test_accounts_and_metrics_tell_of_the_rows(database_url: str) -> None:
    said, _ = run(
        """
        assert records.steer(start()).result(20)
        records.record(Change(table="job_runs", row={"id": 1}))
        clew.flush()
        found = clew.accounts()["history"]
        tell([found.emitted, found.delivered, found.dropped])
        tell([line for line in clew.prometheus_text()[0].decode().splitlines() if line.startswith("clew_history")])
        """,
        OTEL_METRICS_EXPORTER="otlp",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1",
    )
    assert said[0] == [2, 1, {"refused": 1}]
    assert {line.split("{")[0].split(" ")[0] for line in said[1]} == {
        "clew_history_accepted_total",
        "clew_history_written_total",
        "clew_history_dropped_total",
        "clew_history_pending",
    }


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'history.db'}"
    said, complained = run(
        """
        import resource
        assert records.steer(start()).result(20)
        # No file may grow beyond this, as on a disk that is full; what goes to the spool is smaller
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        def row(number):
            return Change(table="job_runs", row={**start().row, "traceback": os.urandom(300).hex()})
        for number in range(200):
            records.steer(row(number)).result(20)
        tell(records.account().spooled > 50)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        deadline = time.monotonic() + 30
        while records.account().pending and time.monotonic() < deadline:
            records.flush(5)
        tell(account())
        """,
        CLEW_DATABASE_URL=url,
    )
    assert said == [True, [201, 201, {}, 0, 0]], complained
    assert len(rows(url)) == 201
