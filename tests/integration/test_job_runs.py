"""Runs of jobs in the history: each way in which they start, end and fail, in threads, tasks and generators."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import pytest

import clew
from clew.jobs.success import successes
from clew.testing import CapturedTelemetry
from tests.integration.job_history import History, own_history
from tests.integration.waiting import eventually


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.fixture
def history(
    database_url: str, captured_telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch
) -> Iterator[History]:
    """An empty history that this process's recorder writes to."""
    with own_history(database_url, monkeypatch, heartbeat_s=0.2) as opened:
        yield opened


def only(history: History, job: str) -> dict[str, Any]:
    (run,) = history.runs(job)
    return dict(run)


def test_a_run_is_there_before_it_works_and_complete_when_it_has(
    history: History, captured_telemetry: CapturedTelemetry
) -> None:
    with clew.correlation("order-17"), clew.job("digest", user_id="u-17", attempt=2, topics=3, password="x") as run:
        started = only(history, "digest")
        run.progress(0.4)
        eventually(lambda: only(history, "digest")["progress"] == 0.4, "the heartbeat brings it")
        run.set("sent", 12)
        run.set_result({"sent": 12, "api_key": "sk-1234567890abcdef"})
    ended = only(history, "digest")
    assert (started["status"], started["finished_at"]) == ("running", None)
    assert (ended["status"], ended["id"], ended["user_id"], ended["attempt"]) == ("completed", run.id, "u-17", 2)
    assert ended["metadata"] == {"topics": 3, "password": "[redacted]", "sent": 12}
    assert ended["result"]["sent"] == 12
    assert "sk-123" not in str(ended["result"])
    span = captured_telemetry.span("run digest")
    assert (ended["trace_id"], ended["span_id"]) == (span.trace_id, span.span_id)
    assert ended["correlation_id"] == "order-17"
    assert ended["finished_at"] >= ended["started_at"]
    assert ended["heartbeat_at"] >= started["heartbeat_at"]
    history.check_totals("digest")


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (ValueError("bad"), "failed", "ValueError"),
        (MuteError(), "failed", "MuteError"),
        (SystemExit(0), "completed", None),
        (SystemExit(3), "failed", "SystemExit"),
        (KeyboardInterrupt(), "cancelled", "cancelled"),
        (asyncio.CancelledError(), "cancelled", "cancelled"),
        (GeneratorExit(), "completed", None),
        (ValueError("nul \x00 and \ud800"), "failed", "ValueError"),
    ],
    ids=repr,
)
def test_how_a_run_ends(history: History, error: BaseException, status: str, kind: str | None) -> None:
    with pytest.raises(type(error)), clew.job("ends"):
        raise error
    run = only(history, "ends")
    assert (run["status"], run["error_type"]) == (status, kind)
    assert bool(run["traceback"]) == (status in {"failed", "cancelled"})
    history.check_totals("ends")


def test_a_failure_without_an_exception(history: History) -> None:
    with clew.job("fails") as run:
        run.fail("timeout", "the oven did not answer")
    found = only(history, "fails")
    assert (found["status"], found["error_type"], found["error_message"]) == (
        "failed",
        "timeout",
        "the oven did not answer",
    )


def test_a_long_traceback_keeps_its_end(history: History) -> None:
    with pytest.raises(ValueError), clew.job("deep"):
        raise ValueError("é" * 100_000 + "the end")
    run = only(history, "deep")
    assert run["traceback"].endswith("the end\n")
    assert len(run["traceback"].encode()) <= 16_384
    assert len(run["error_message"].encode()) <= 16_384


@pytest.mark.parametrize(
    ("returned", "kept"),
    [
        ({"a": [1, 2.5, None]}, {"a": [1, 2.5, None]}),
        ("text", "text"),
        (0, 0),
        (False, False),
        ((1, 2), [1, 2]),
        (None, None),
        (object(), None),
        (float("nan"), "nan"),
        ({1: object}, {"1": str(object)}),
    ],
    ids=["mapping", "text", "zero", "false", "tuple", "none", "object", "nan", "keys"],
)
def test_what_a_function_returns_is_its_result(history: History, returned: Any, kept: Any) -> None:
    @clew.job("returns")
    def function() -> Any:
        return returned

    @clew.job("returns later")
    async def coroutine() -> Any:
        await asyncio.sleep(0)
        return returned

    assert function() is returned
    assert asyncio.run(coroutine()) is returned
    assert [only(history, job)["result"] for job in ("returns", "returns later")] == [kept, kept]


def test_a_result_of_ten_megabytes(history: History) -> None:
    with clew.job("large") as run:
        run.set_result("x" * 10_000_000)
    result = only(history, "large")["result"]
    assert (result["clew.truncated"], result["bytes"]) == (True, 10_000_002)
    assert len(result["head"]) <= 16_384


def test_generators(history: History) -> None:
    @clew.job("steps")
    def steps() -> Generator[int, None, None]:
        yield 1
        yield 2

    @clew.job("steps later")
    async def later() -> AsyncIterator[int]:
        yield 1
        yield 2

    async def consume() -> list[int]:
        return [item async for item in later()]

    assert list(steps()) == asyncio.run(consume()) == [1, 2]
    first = steps()
    assert next(first) == 1
    assert [run["status"] for run in history.runs("steps")] == ["completed", "running"]
    first.close()
    assert [run["status"] for run in history.runs("steps")] == ["completed", "completed"]
    assert only(history, "steps later")["status"] == "completed"


def test_runs_within_runs(history: History) -> None:
    with clew.job("outer"):
        with clew.job("inner"):
            assert only(history, "inner")["status"] == "running"
        assert only(history, "outer")["status"] == "running"
    outer, inner = only(history, "outer"), only(history, "inner")
    assert (outer["trace_id"], outer["status"]) == (inner["trace_id"], "completed")


def test_fifty_threads_and_fifty_tasks_at_once(history: History) -> None:
    together = threading.Barrier(50)

    def in_thread() -> None:
        with clew.job("thread"):
            together.wait(30)

    threads = [threading.Thread(target=in_thread) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def in_tasks() -> None:
        all_started = asyncio.Event()
        started = 0

        async def in_task() -> None:
            nonlocal started
            async with clew.job("task"):
                started += 1
                if started == 50:
                    all_started.set()
                await all_started.wait()

        await asyncio.gather(*(in_task() for _ in range(50)))

    asyncio.run(in_tasks())
    for job in ("thread", "task"):
        assert history.totals(job) == {"completed": 50}
        assert len(history.runs(job, "completed")) == 50


def test_a_cancelled_task(history: History) -> None:
    async def main() -> None:
        started = asyncio.Event()

        @clew.job("hangs")
        async def hang() -> None:
            started.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(hang())
        await started.wait()
        assert only(history, "hangs")["status"] == "running"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert only(history, "hangs")["status"] == "cancelled"


def test_hostile_names_and_metadata(history: History) -> None:
    circle: dict[str, Any] = {}
    circle["self"] = circle
    name = "n\x00" + "ö" * 500
    with clew.job(name, user_id="u" * 1000, circle=circle):
        pass
    with history.database.read() as connection:
        (found,) = connection.exec_driver_sql("SELECT status FROM job_runs").all()
    assert found.status == "completed"


def test_how_long_ago_a_job_succeeded_survives_a_restart(
    history: History, captured_telemetry: CapturedTelemetry
) -> None:
    with clew.job("nightly"):
        pass
    successes.reset()
    with pytest.raises(ValueError), clew.job("nightly"):
        raise ValueError

    def known() -> list[Any]:
        return [series for series in captured_telemetry.metrics if series.name == "clew.job.last_success.age"]

    eventually(known, "the history is read")
    (age,) = known()
    assert age.labels == {"clew.job.name": "nightly"}
    assert age.value is not None
    assert age.value >= 0
