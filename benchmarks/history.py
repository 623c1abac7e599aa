"""The process that is measured by the scenario of the history: it records runs, or archives a million of them.

``python -m benchmarks.history record URL SECONDS`` and ``... archive URL FOLDER`` print one line of JSON.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil

from clew import clock
from clew.history.database import Database
from clew.history.ids import new_id
from clew.history.recorder import Recorder
from clew.history.retention import clean_up
from clew.history.writing import Change
from clew.settings import Settings

THREADS = 50


def record(url: str, seconds: float) -> dict[str, Any]:
    """Record runs as fast as it goes: start and end of each, committed."""
    settings = Settings.load(database_url=url, database_auto_upgrade=True, history=True)
    recorder = Recorder(settings)
    recorder.steer(_start(recorder)).result(60)

    def waiting() -> None:
        start = _start(recorder)
        recorder.steer(start).result(60)
        recorder.steer(_end(start)).result(60)

    found = {"waiting": _rate(waiting, 1, seconds), "threads": _rate(waiting, THREADS, seconds)}
    took: list[float] = []

    def timed() -> None:
        started = time.perf_counter()
        start = _start(recorder)
        recorder.steer(start)
        recorder.steer(_end(start))
        took.append(time.perf_counter() - started)
        if len(took) % 500 == 0:
            recorder.flush(60)

    found["queued"] = _rate(timed, 1, seconds)
    took.sort()
    found["queued_us"] = took[len(took) // 2] * 1e6
    recorder.shutdown(10)
    account = recorder.account()
    if account.delivered != account.emitted:
        raise RuntimeError(f"not everything was written: {account}")
    return found


def archive(url: str, folder: Path) -> dict[str, Any]:
    """Archive and delete all runs that there are, and watch the memory of the process meanwhile."""
    settings = Settings.load(archive_dir=folder)
    database = Database(Settings.load(database_url=url).history_url())
    with database.read() as connection:
        connection.exec_driver_sql("SELECT 1")
    process = psutil.Process()
    before = process.memory_info().rss
    most = [before]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            most[0] = max(most[0], process.memory_info().rss)

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    started = time.perf_counter()
    (runs, *_) = clean_up(database, settings, now=clock.utc_now() + timedelta(days=365))
    took = time.perf_counter() - started
    over.set()
    watching.join()
    size = sum(path.stat().st_size for path in runs.files)
    return {
        "rows": runs.rows,
        "files": len(runs.files),
        "seconds": took,
        "size_mb": size / 1e6,
        "rss_mb": before / 1e6,
        "rss_growth_mb": (most[0] - before) / 1e6,
    }


def _rate(do: Callable[[], None], threads: int, seconds: float) -> float:
    done = [0] * threads
    until = time.perf_counter() + seconds

    def work(number: int) -> None:
        while time.perf_counter() < until:
            do()
            done[number] += 1

    working = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    started = time.perf_counter()
    for thread in working:
        thread.start()
    for thread in working:
        thread.join()
    return sum(done) / (time.perf_counter() - started)


def _start(recorder: Recorder) -> Change:
    now = clock.utc_now()
    row = recorder.row(
        id=new_id(),
        job="digest",
        job_id="digest",
        source="apscheduler",
        status="running",
        scheduled_at=now,
        started_at=now,
    )
    return Change(table="job_runs", row={**row, "attempt": 1, "lateness_s": 0.01, "host": "bench", "pid": 4711})


def _end(start: Change) -> Change:
    ended = {"status": "completed", "finished_at": clock.utc_now(), "duration_s": 0.25, "result": {"rows": 17}}
    return Change(table="job_runs", row={**start.row, **ended}, verb="end")


if __name__ == "__main__":
    verb, address, rest = sys.argv[1:]
    print(json.dumps(record(address, float(rest)) if verb == "record" else archive(address, Path(rest))))
