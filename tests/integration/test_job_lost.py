"""When a run is taken for lost, and when it is not: other machines, changed clocks, outages, numbers of processes used again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clew import clock
from clew.history.ids import new_id
from clew.history.liveness import Watch, mark_lost
from clew.history.processes import is_gone, key_of
from clew.history.writing import Change, write
from tests.integration.job_history import History

BEAT_S = 10.0
NOW = datetime(2026, 10, 25, 0, 59, tzinfo=UTC)


class Clocks:
    """Both clocks, in a test's hand."""

    def __init__(self) -> None:
        self.wall, self.monotonic_s = NOW, 1_000.0

    def pass_s(self, seconds: float) -> None:
        self.wall += timedelta(seconds=seconds)
        self.monotonic_s += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    made = Clocks()
    monkeypatch.setattr(clock, "utc_now", lambda: made.wall)
    monkeypatch.setattr(clock, "monotonic_s", lambda: made.monotonic_s)
    return made


@pytest.fixture
def history(database_url: str) -> Iterator[History]:
    with History(database_url) as opened:
        yield opened


def row(**columns: Any) -> dict[str, Any]:
    return {
        "id": new_id(),
        "service": "jobs",
        "instance": "other",
        "recorded_at": clock.utc_now(),
        "job": "long",
        "source": "clew",
        "status": "running",
        "started_at": clock.utc_now(),
        "heartbeat_at": clock.utc_now(),
        "heartbeat_s": BEAT_S,
        "host": "elsewhere",
        "pid": 1,
        "process_key": "elsewhere/1",
        "attempt": 1,
        **columns,
    }


def put(history: History, run: dict[str, Any], verb: Any = "record") -> None:
    with history.database.write() as connection:
        write(connection, [Change(table="job_runs", row=run, verb=verb)])


def beat(history: History, run: dict[str, Any]) -> None:
    put(history, {**run, "heartbeat_at": clock.utc_now()}, "end")


def look(watch: Watch, history: History) -> int:
    with history.database.read() as connection:
        return watch.look(connection, history.database)


def test_a_heart_elsewhere_that_stops(history: History, clocks: Clocks) -> None:
    silent, alive = row(), row()
    for run in (silent, alive):
        put(history, run)
    watch = Watch(BEAT_S)
    found = []
    for _ in range(6):
        found.append(look(watch, history))
        clocks.pass_s(BEAT_S)
        beat(history, alive)
    assert found == [0, 0, 0, 0, 1, 0]
    assert [run["id"] for run in history.runs("long", "lost")] == [silent["id"]]
    assert history.runs("long", "lost")[0]["error_message"] == "its heartbeat stopped"
    # The wall clock of a reader tells nothing of one that it does not watch
    assert mark_lost(history.database) == 0


def test_a_run_that_ends_after_all_is_completed_and_counted_once(history: History, clocks: Clocks) -> None:
    run = row()
    put(history, run)
    watch = Watch(BEAT_S)
    while not look(watch, history):
        clocks.pass_s(BEAT_S)
    assert history.totals("long") == {"lost": 1}
    put(history, {**run, "status": "completed", "finished_at": clock.utc_now(), "duration_s": 50.0}, "end")
    assert [found["status"] for found in history.runs("long")] == ["completed"]
    assert history.totals("long") == {"completed": 1}


@pytest.mark.parametrize("step", [timedelta(hours=1), timedelta(hours=-1), timedelta(days=400), timedelta(seconds=-30)])
def test_a_wall_clock_that_is_set_makes_nothing_lost(history: History, clocks: Clocks, step: timedelta) -> None:
    run = row()
    put(history, run)
    watch = Watch(BEAT_S)
    for _ in range(8):
        assert look(watch, history) == 0
        clocks.wall += step
        clocks.pass_s(BEAT_S)
        beat(history, run)


def test_an_outage_for_all_makes_nothing_lost(history: History, clocks: Clocks) -> None:
    run = row()
    put(history, run)
    watch = Watch(BEAT_S)
    assert look(watch, history) == 0
    # Nobody could write or read for an hour, and the others come back half a minute later than the watcher
    clocks.pass_s(3600)
    for _ in range(3):
        assert look(watch, history) == 0
        clocks.pass_s(BEAT_S)
    beat(history, run)
    assert look(watch, history) == 0
    # One that does not come back at all is found yet
    found = 0
    for _ in range(20):
        clocks.pass_s(BEAT_S)
        found += look(watch, history)
    assert found == 1


def test_a_slower_heart_is_given_its_time(history: History, clocks: Clocks) -> None:
    put(history, row(heartbeat_s=60.0))
    watch = Watch(BEAT_S)
    looks = 0
    while not look(watch, history):
        clocks.pass_s(BEAT_S)
        looks += 1
    assert looks == 24


def test_a_number_that_another_process_has_now(history: History, clocks: Clocks) -> None:
    own = key_of(os.getpid()) or ""
    space, _, started = own.rpartition("/")
    put(history, row(pid=os.getpid(), process_key=own, job="mine"))
    # As after a restart of a container whose processes are counted anew, or when numbers come round
    put(history, row(pid=os.getpid(), process_key=f"{space}/{int(started) - 1}"))
    # The same number in another container, or on another machine, tells nothing at once
    put(history, row(pid=os.getpid(), process_key=f"elsewhere/{started}", job="other"))
    put(history, row(pid=None, process_key=None, job="nobody"))
    assert look(Watch(BEAT_S), history) == 1
    assert [run["status"] for job in ("mine", "long", "other", "nobody") for run in history.runs(job)] == [
        "running",
        "lost",
        "running",
        "running",
    ]
    assert clocks.wall == NOW


def test_many_that_notice_at_once_mark_it_once(history: History) -> None:
    space, _, started = (key_of(os.getpid()) or "").rpartition("/")
    for _ in range(20):
        put(history, row(pid=os.getpid(), process_key=f"{space}/{int(started) - 1}"))
    with ThreadPoolExecutor(8) as pool:
        marked = list(pool.map(lambda _: mark_lost(history.database), range(8)))
    assert sum(marked) == 20
    assert history.totals("long") == {"lost": 20}


def test_processes_that_start_at_the_same_tick_are_told_apart() -> None:
    children = [subprocess.Popen(["sleep", "60"]) for _ in range(20)]
    try:
        assert len({key_of(child.pid) for child in children}) == 20
        assert not any(is_gone(child.pid, key_of(child.pid) or "") for child in children)
    finally:
        for child in children:
            child.kill()
            child.wait()


@given(st.text(max_size=60), st.integers(min_value=0, max_value=2**31 - 1))
def test_any_key_has_an_answer(key: str, pid: int) -> None:
    assert is_gone(pid, key) in {True, False, None}
