"""APScheduler: real schedulers, executors, job stores and processes; a run of each kind, and what goes wrong with runs."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from apscheduler.events import EVENT_ALL
from apscheduler.executors.debug import DebugExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.base import BaseScheduler
from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

import clew
from clew.instrumentation.apscheduler import instrument_all
from clew.testing import CapturedLog, CapturedSpan, CapturedTelemetry
from tests.integration import scheduled_jobs
from tests.integration.waiting import WAIT_S, eventually, eventually_async
from tests.otlp_sink import OtlpSink

ROOT = Path(__file__).parents[2]


def runs(captured: CapturedTelemetry) -> list[CapturedSpan]:
    return [span for span in captured.spans if span.name.startswith("run ")]


def logs(captured: CapturedTelemetry, event: str) -> list[CapturedLog]:
    return [log for log in captured.logs if log.body == event]


@pytest.fixture
def scheduler() -> Iterator[Any]:
    made = clew.instrument(BackgroundScheduler(timezone="UTC"))
    yield made
    if made.running:
        made.shutdown()


def soon() -> datetime:
    return datetime.now(UTC) + timedelta(milliseconds=50)


def test_a_recurring_job_has_a_trace_per_run_linked_to_what_scheduled_it(
    captured_telemetry: CapturedTelemetry, scheduler: Any
) -> None:
    scheduler.start()
    with clew.correlation("order-17"), clew.span("request"):
        # On a busy machine a run may last until the next one is due
        scheduler.add_job(scheduled_jobs.export, "interval", seconds=0.05, id="nightly", max_instances=20)
    eventually(lambda: len(runs(captured_telemetry)) >= 2, "two runs")
    scheduler.shutdown()

    request, found = captured_telemetry.span("request"), runs(captured_telemetry)
    assert {run.name for run in found} == {"run nightly"}
    assert len({run.trace_id for run in found} | {request.trace_id}) == len(found) + 1
    assert {run.parent_id for run in found} == {""}
    assert {link.span_id for run in found for link in run.links} == {request.span_id}
    assert {run.attributes["clew.correlation.id"] for run in found} == {"order-17"}
    assert {run.attributes["clew.job.status"] for run in found} == {"completed"}
    assert {run.attributes["clew.job.trigger"] for run in found} == {"interval"}
    inside = [span for span in captured_telemetry.spans if span.name == "inside"]
    assert {span.parent_id for span in inside} == {run.span_id for run in found}
    due = datetime.fromisoformat(found[0].attributes["clew.job.scheduled_at"])
    assert due.tzinfo is not None
    assert found[0].start_ns / 1e9 - due.timestamp() == pytest.approx(
        found[0].attributes["clew.job.lateness_s"], abs=0.1
    )
    assert captured_telemetry.metric("clew.job.lateness", clew__job__name="nightly").count == len(found)
    assert captured_telemetry.metric("clew.job.duration", clew__job__status="completed").count == len(found)
    for event in ("job_start", "job_end"):
        assert {log.trace_id for log in logs(captured_telemetry, event)} == {run.trace_id for run in found}


def test_a_one_shot_job_continues_the_trace_that_scheduled_it(
    captured_telemetry: CapturedTelemetry, scheduler: Any
) -> None:
    with clew.correlation("order-17"), clew.span("request"):
        # Before the scheduler starts, and by an id that tells one request from another
        scheduler.add_job(scheduled_jobs.export, "date", run_date=soon(), id="export-4711", args=(4,))
    scheduler.start()
    eventually(lambda: runs(captured_telemetry), "the run")

    request, run = captured_telemetry.span("request"), captured_telemetry.span("run export")
    assert (run.trace_id, run.parent_id, run.links) == (request.trace_id, request.span_id, ())
    assert run.attributes["clew.job.id"] == "export-4711"
    assert run.attributes["clew.correlation.id"] == "order-17"


def test_jobs_from_before_and_schedulers_that_nobody_asked_for(captured_telemetry: CapturedTelemetry) -> None:
    ran: list[str] = []
    early, left_alone = BackgroundScheduler(timezone="UTC"), BackgroundScheduler(timezone="UTC")
    with clew.span("request"):
        early.add_job(lambda: ran.append("early"), "date", run_date=soon(), id="early")
        left_alone.add_job(lambda: ran.append("alone"), "date", run_date=soon(), id="alone")
    for _ in range(2):
        assert clew.instrument(early) is early
    early.start()
    left_alone.start()
    eventually(lambda: len(ran) == 2 and runs(captured_telemetry), "both ran")
    early.shutdown()
    left_alone.shutdown()
    assert [(run.parent_id, run.links) for run in runs(captured_telemetry)] == [("", ())]


def test_a_failure_is_the_runs_and_stays_the_schedulers(captured_telemetry: CapturedTelemetry, scheduler: Any) -> None:
    events: list[Any] = []
    scheduler.add_listener(events.append, EVENT_ALL)
    scheduler.start()
    scheduler.add_job(scheduled_jobs.fail, "date", run_date=soon())
    eventually(lambda: runs(captured_telemetry), "the run")
    scheduler.shutdown()

    run = captured_telemetry.span("run fail")
    assert (run.status, run.status_message) == ("error", "nothing to export")
    assert (run.attributes["clew.job.status"], run.attributes["error.type"]) == ("failed", "RuntimeError")
    assert [event.name for event in run.events] == ["exception"]
    assert [log.trace_id for log in logs(captured_telemetry, "job_error")] == [run.trace_id]
    assert not logs(captured_telemetry, "job_end")
    # The scheduler's own line about it, written by plain logging, is in the trace as well
    assert run.trace_id in {log.trace_id for log in captured_telemetry.logs if "raised an exception" in log.body}
    assert [repr(event.exception) for event in events if hasattr(event, "exception")] == [
        "RuntimeError('nothing to export')"
    ]


def test_a_misfire_is_a_missed_run_that_never_started(captured_telemetry: CapturedTelemetry, scheduler: Any) -> None:
    scheduler.add_job(
        scheduled_jobs.export, "date", run_date=datetime.now(UTC) - timedelta(seconds=30), misfire_grace_time=1
    )
    scheduler.start()
    eventually(lambda: runs(captured_telemetry), "the missed run")

    run = captured_telemetry.span("run export")
    assert run.attributes["clew.job.status"] == "missed"
    misfires = captured_telemetry.metric(
        "clew.job.misfires", clew__job__name="export", clew__job__misfire__reason="late"
    )
    assert misfires.value == 1
    assert [log.trace_id for log in logs(captured_telemetry, "job_missed")] == [run.trace_id]
    assert not logs(captured_telemetry, "job_start")
    assert not [span for span in captured_telemetry.spans if span.name == "inside"]


def test_an_overlap_is_a_skipped_run(captured_telemetry: CapturedTelemetry, scheduler: Any) -> None:
    hold = threading.Event()
    scheduler.add_job(hold.wait, "interval", seconds=0.05, id="slow", args=(WAIT_S,))
    scheduler.start()
    eventually(
        lambda: [run for run in runs(captured_telemetry) if run.attributes["clew.job.status"] == "skipped"],
        "an overlap",
    )
    hold.set()
    scheduler.shutdown()
    skipped = captured_telemetry.metric(
        "clew.job.misfires", clew__job__name="slow", clew__job__misfire__reason="overlap"
    )
    assert skipped.value >= 1


def test_an_asyncio_scheduler(captured_telemetry: CapturedTelemetry) -> None:
    seen: dict[str, Any] = {}

    async def coroutine() -> None:
        await asyncio.sleep(0)
        seen["coroutine"] = clew.trace_id(), clew.correlation_id()

    def function() -> None:
        seen["function"] = clew.trace_id(), clew.correlation_id()

    async def main() -> None:
        scheduler = clew.instrument(AsyncIOScheduler(timezone="UTC"))
        scheduler.start()
        with clew.correlation("order-17"), clew.span("request"):
            scheduler.add_job(coroutine, DateTrigger(soon()))
            scheduler.add_job(function, DateTrigger(soon()))
            # Woken up from within the request's context, a job of nobody's must not end up in it
            scheduler.add_job(asyncio.sleep, IntervalTrigger(seconds=0.05), id="tick", args=(0,))
        await eventually_async(lambda: len({run.name for run in runs(captured_telemetry)}) == 3, "a run of each")
        scheduler.shutdown()

    asyncio.run(asyncio.wait_for(main(), WAIT_S))
    request = captured_telemetry.span("request")
    assert seen == {"coroutine": (request.trace_id, "order-17"), "function": (request.trace_id, "order-17")}
    ticks = [run for run in runs(captured_telemetry) if run.name == "run tick"]
    assert {run.parent_id for run in ticks} == {""}
    assert {link.span_id for run in ticks for link in run.links} == {request.span_id}


def test_a_cancelled_coroutine_is_no_failure(captured_telemetry: CapturedTelemetry) -> None:
    async def main() -> None:
        started = asyncio.Event()

        async def hang() -> None:
            started.set()
            await asyncio.Event().wait()

        scheduler = clew.instrument(AsyncIOScheduler(timezone="UTC"))
        scheduler.start()
        scheduler.add_job(hang, DateTrigger(soon()))
        await started.wait()
        scheduler.shutdown()
        await eventually_async(lambda: runs(captured_telemetry), "the run ended")

    asyncio.run(asyncio.wait_for(main(), WAIT_S))
    assert [run.attributes["clew.job.status"] for run in runs(captured_telemetry)] == ["cancelled"]


def test_a_blocking_scheduler_and_the_debug_executor(captured_telemetry: CapturedTelemetry) -> None:
    scheduler: Any = BlockingScheduler(executors={"default": DebugExecutor()}, timezone="UTC")
    clew.instrument(scheduler)
    with clew.span("request"):
        scheduler.add_job(scheduled_jobs.export, "date", run_date=soon())
    thread = threading.Thread(target=scheduler.start)
    thread.start()
    eventually(lambda: runs(captured_telemetry), "the run")
    scheduler.shutdown()
    thread.join(WAIT_S)
    (run,) = runs(captured_telemetry)
    assert run.parent_id == captured_telemetry.span("request").span_id


def test_every_scheduler_made_from_now_on(
    captured_telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that it is taken back after the test
    monkeypatch.setattr(BaseScheduler, "__init__", BaseScheduler.__init__)
    instrument_all()
    instrument_all()
    made = BackgroundScheduler(timezone="UTC")
    made.start()
    made.add_job(scheduled_jobs.export, "date", run_date=soon())
    eventually(lambda: runs(captured_telemetry), "the run")
    made.shutdown()
    assert len(runs(captured_telemetry)) == 1


def test_what_scheduled_a_job_survives_changes_to_it(captured_telemetry: CapturedTelemetry, tmp_path: Path) -> None:
    scheduler = clew.instrument(scheduled_jobs.stored_scheduler(str(tmp_path / "jobs.sqlite")))
    scheduler.start()
    with clew.span("request"):
        scheduler.add_job(scheduled_jobs.export, "interval", days=1, id="nightly")
    scheduler.pause_job("nightly")
    scheduler.reschedule_job("nightly", trigger="interval", seconds=0.05)
    eventually(lambda: runs(captured_telemetry), "a run")
    scheduler.shutdown()
    assert runs(captured_telemetry)[0].links[0].span_id == captured_telemetry.span("request").span_id


def in_process(store: Path, action: str, sink: OtlpSink, **environment: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "tests.integration.scheduled_jobs", str(store), action],
        cwd=ROOT,
        env=os.environ | sink.environment | environment,
        check=True,
        timeout=60,
    )


def test_a_stored_one_shot_continues_its_trace_after_a_restart(otlp_sink: OtlpSink, tmp_path: Path) -> None:
    in_process(tmp_path / "jobs.sqlite", "schedule", otlp_sink)
    in_process(tmp_path / "jobs.sqlite", "run", otlp_sink)
    request, run, inside = (otlp_sink.wait_for_span(name) for name in ("request", "run export", "inside"))
    assert request.resource["service.instance.id"] != run.resource["service.instance.id"]
    assert (run.trace_id, run.parent_id, inside.parent_id) == (request.trace_id, request.span_id, run.span_id)
    assert run.attributes["clew.correlation.id"] == "order-17"


def test_jobs_stored_with_clew_load_without_it(otlp_sink: OtlpSink, tmp_path: Path) -> None:
    in_process(tmp_path / "jobs.sqlite", "schedule", otlp_sink)
    in_process(tmp_path / "jobs.sqlite", "run-plain", otlp_sink, WITHOUT_CLEW="1")


def test_jobs_stored_without_clew_load_with_it(otlp_sink: OtlpSink, tmp_path: Path) -> None:
    in_process(tmp_path / "jobs.sqlite", "schedule-plain", otlp_sink)
    in_process(tmp_path / "jobs.sqlite", "run", otlp_sink)
    run = otlp_sink.wait_for_span("run export")
    assert (run.parent_id, run.links, run.attributes["clew.job.status"]) == ("", (), "completed")


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_a_process_pool(otlp_sink: OtlpSink, tmp_path: Path, method: str) -> None:
    in_process(tmp_path / "jobs.sqlite", f"pool-{method}", otlp_sink)
    request, run, inside = (otlp_sink.wait_for_span(name) for name in ("request", "run export", "inside"))
    assert run.resource["process.pid"] != request.resource["process.pid"]
    assert run.resource["service.name"] == "scheduling"
    assert (run.trace_id, run.parent_id, inside.parent_id) == (request.trace_id, request.span_id, run.span_id)
    assert run.attributes["clew.correlation.id"] == "order-17"
