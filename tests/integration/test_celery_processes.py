"""Celery: processes that are killed, stopped, of other pools, with and without clew; and beat."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from celery.exceptions import WorkerLostError
from sqlalchemy import create_engine, text

import clew
from clew.testing import CapturedLog, CapturedSpan, CapturedTelemetry
from tests.integration.celery_process import CeleryProcess
from tests.integration.library_versions import folder_with
from tests.integration.server_process import BIN
from tests.integration.waiting import eventually
from tests.otlp_sink import OtlpSink

WAIT_S = 20.0


@pytest.fixture(autouse=True)
def forgotten(valkey_server: str) -> Iterator[None]:
    """Celery's results say so to the server when they are collected, which must be there then."""
    yield
    gc.collect()


@pytest.fixture
def app(captured_telemetry: CapturedTelemetry, valkey_url: str) -> Iterator[Any]:
    """An app that sends to workers, and knows their tasks by name only."""
    made = Celery("producer", broker=valkey_url, backend=valkey_url, set_as_current=False)
    made.conf.task_default_queue = "work"
    yield clew.instrument(made)
    made.close()


@pytest.fixture
def sqlite_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path / 'history.db'}"
    monkeypatch.setenv("CLEW_DATABASE_URL", url)
    return url


def runs(sink: OtlpSink, task_id: str) -> list[CapturedSpan]:
    found = [
        span for span in sink.spans if span.attributes.get("clew.job.id") == task_id and span.name.startswith("run ")
    ]
    return sorted(found, key=lambda span: span.start_ns)


def rows(url: str, task_id: str) -> list[dict[str, Any]]:
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            query = text("SELECT * FROM job_runs WHERE job_id = :job_id ORDER BY id")
            return [dict(row._mapping) for row in connection.execute(query, {"job_id": task_id})]
    finally:
        engine.dispose()


def events(sink: OtlpSink, name: str) -> list[CapturedLog]:
    return [log for log in sink.logs if log.body == name]


def held(client: Any, key: str) -> int:
    """Wait until a task is at work and return the process that runs it."""
    found = client.blpop([f"{key}:held"], timeout=15)
    assert found is not None, f"nobody took {key}"
    return int(found[1])


@pytest.mark.parametrize("pool", ["threads", "solo", "prefork"])
def test_every_pool_runs_tasks_in_their_senders_trace_and_loses_nothing_at_its_end(
    app: Any, valkey_url: str, otlp_sink: OtlpSink, sqlite_url: str, tmp_path: Path, pool: str
) -> None:
    arguments = ("worker", "-P", pool, "-c", "3")
    # Nothing leaves but at the end
    environment = {**otlp_sink.environment, "OTEL_BSP_SCHEDULE_DELAY": "60000", "OTEL_BLRP_SCHEDULE_DELAY": "60000"}
    with CeleryProcess(*arguments, url=valkey_url, folder=tmp_path, environment=environment) as worker:
        with clew.span("request") as request:
            eta = datetime.now(UTC) + timedelta(seconds=0.3)
            results = [app.send_task("shop.many", (number,), eta=eta) for number in range(20)]
            nested = app.send_task("shop.nested", (1,))
        inner = app.AsyncResult(nested.get(timeout=WAIT_S))
        assert [result.get(timeout=WAIT_S) for result in results] == list(range(20))
        assert inner.get(timeout=WAIT_S) == 2
        assert worker.stop() == 0
    task_ids = [*(result.id for result in results), nested.id, inner.id]
    for task_id in task_ids:
        (run,) = runs(otlp_sink, task_id)
        (row,) = rows(sqlite_url, task_id)
        assert (run.trace_id, row["trace_id"]) == (request.trace_id, request.trace_id)
        assert (row["span_id"], row["status"]) == (run.span_id, "completed")
        assert row["pid"] == run.resource["process.pid"]
    assert len(events(otlp_sink, "job_start")) == len(events(otlp_sink, "job_end")) == len(task_ids)
    assert otlp_sink.total("clew.job.duration", clew__job__status="completed") == len(task_ids)
    # What had an ETA was late, and what had none waited
    assert otlp_sink.total("clew.job.lateness", clew__job__name="shop.many") == 20
    assert otlp_sink.total("clew.queue.wait.duration", messaging__destination__name="work") == 2
    assert otlp_sink.total("messaging.client.consumed.messages") == len(task_ids)


def test_a_worker_without_clew_runs_what_a_producer_with_clew_sends(
    captured_telemetry: CapturedTelemetry, app: Any, valkey_url: str, otlp_sink: OtlpSink, tmp_path: Path
) -> None:
    environment = {**otlp_sink.environment, "CELERY_PLAIN": "1"}
    with CeleryProcess("worker", "-P", "solo", url=valkey_url, folder=tmp_path, environment=environment):
        result = app.send_task("shop.request", (), headers={"tenant": "north"})
        seen = result.get(timeout=WAIT_S)
    assert (seen["args"], seen["headers"]["tenant"], seen["retries"]) == ([], "north", 0)
    assert seen["headers"]["traceparent"].split("-")[1] == captured_telemetry.span("send work").trace_id
    assert otlp_sink.spans == []


def test_without_a_line_of_code(
    app: Any, valkey_url: str, otlp_sink: OtlpSink, sqlite_url: str, tmp_path: Path
) -> None:
    environment = {**otlp_sink.environment, "CLEW_RUN": "1", "OTEL_SERVICE_NAME": ""}
    run_by = (str(BIN / "clew"), "run")
    with CeleryProcess("worker", "-c", "1", url=valkey_url, folder=tmp_path, environment=environment, run_by=run_by):
        with clew.span("request") as request:
            result = app.send_task("shop.add", (1, 2))
        assert result.get(timeout=WAIT_S) == 3
    (run,) = runs(otlp_sink, result.id)
    assert (run.trace_id, run.resource["service.name"]) == (request.trace_id, "tests.integration.celery_app")
    (row,) = rows(sqlite_url, result.id)
    assert row["status"] == "completed"


def test_a_child_that_is_killed_is_lost_once_and_its_task_is_run_again_in_the_same_trace(
    app: Any, valkey_url: str, otlp_sink: OtlpSink, database_url: str, tmp_path: Path
) -> None:
    environment = {**otlp_sink.environment, "CLEW_HEARTBEAT_S": "0.5"}
    with (
        redis.Redis.from_url(valkey_url, socket_timeout=30) as client,
        CeleryProcess("worker", "-c", "2", "-l", "info", url=valkey_url, folder=tmp_path, environment=environment),
    ):
        with clew.span("request") as request:
            early, late = app.send_task("shop.hold", ("early",)), app.send_task("shop.hold_late", ("late",))
        os.kill(held(client, "early"), signal.SIGKILL)
        os.kill(held(client, "late"), signal.SIGKILL)
        # It is delivered again
        held(client, "late")
        client.rpush("late:go", "done")
        with pytest.raises(WorkerLostError):
            early.get(timeout=WAIT_S)
        assert late.get(timeout=WAIT_S) == "done"
        eventually(lambda: len(events(otlp_sink, "job_lost")) == 2, "both are lost")
    killed = [log.body for log in otlp_sink.logs if log.logger == "multiprocessing"]
    assert len([body for body in killed if "signal 9" in body]) == 2
    (row,) = rows(database_url, early.id)
    assert (row["status"], row["trace_id"]) == ("lost", request.trace_id)
    first, second = rows(database_url, late.id)
    assert (first["status"], second["status"]) == ("lost", "completed")
    assert {first["trace_id"], second["trace_id"]} == {request.trace_id}
    (run,) = runs(otlp_sink, late.id)
    assert (run.trace_id, run.attributes["clew.queue.redelivery_count"]) == (request.trace_id, 1)
    assert [(link.trace_id, link.span_id) for link in run.links] == [(first["trace_id"], first["span_id"])]
    lost = events(otlp_sink, "job_lost")
    assert {log.trace_id for log in lost} == {request.trace_id}
    assert {log.span_id for log in lost} == {row["span_id"], first["span_id"]}


def test_a_worker_that_is_killed_is_lost_once_and_another_takes_its_tasks(
    app: Any, valkey_url: str, otlp_sink: OtlpSink, sqlite_url: str, tmp_path: Path
) -> None:
    environment = {**otlp_sink.environment, "CLEW_HEARTBEAT_S": "0.5", "VISIBILITY_TIMEOUT_S": "1"}
    made = [
        CeleryProcess("worker", "-c", "2", "-n", f"{name}@%h", url=valkey_url, folder=tmp_path, environment=environment)
        for name in ("first", "second", "third")
    ]
    with redis.Redis.from_url(valkey_url, socket_timeout=30) as client, clew.span("request") as request:
        with made[0]:
            result = app.send_task("shop.hold_late", ("late",))
            held(client, "late")
            made[0].kill()
        with made[1], made[2]:
            held(client, "late")
            client.rpush("late:go", "done", "done", "done")
            assert result.get(timeout=WAIT_S) == "done"
            eventually(lambda: events(otlp_sink, "job_lost"), "it is lost")
    first, *others = rows(sqlite_url, result.id)
    assert (first["status"], {row["status"] for row in others}) == ("lost", {"completed"})
    assert {row["trace_id"] for row in (first, *others)} == {request.trace_id}
    assert {run.trace_id for run in runs(otlp_sink, result.id)} == {request.trace_id}
    assert len(events(otlp_sink, "job_lost")) == 1


def test_beat_starts_a_trace_with_each_run(
    valkey_url: str, otlp_sink: OtlpSink, sqlite_url: str, tmp_path: Path
) -> None:
    environment = {**otlp_sink.environment, "CELERY_BEAT": "1"}
    beat = CeleryProcess(
        "beat", "-s", "schedule", "-l", "info", url=valkey_url, folder=tmp_path, environment=environment
    )
    worker = CeleryProcess("worker", "-P", "threads", url=valkey_url, folder=tmp_path, environment=environment)
    with beat, worker:
        found = otlp_sink.wait_for_all(lambda sink: sink.named("run shop.add"), 3, what="three runs")
        nightly = otlp_sink.wait_for_span("run shop.total")
        assert (beat.stop(), worker.stop()) == (0, 0)
    sends = {span.span_id: span for span in otlp_sink.named("send work")}
    assert {span.parent_id for span in found} == {""}
    assert len({span.trace_id for span in (*found, *sends.values())}) == len(found) + len(sends)
    for run in (*found, nightly):
        (link,) = run.links
        send = sends[link.span_id]
        assert (send.trace_id, send.kind, send.parent_id) == (link.trace_id, "producer", "")
        assert run.attributes["clew.correlation.id"] == send.attributes["clew.correlation.id"]
    assert {run.attributes["clew.job.trigger"] for run in found} == {"interval"}
    assert nightly.attributes["clew.job.trigger"] == "crontab"
    due = datetime.fromisoformat(nightly.attributes["clew.job.scheduled_at"])
    assert (due.second, due.microsecond // 10_000) == (0, 0)
    assert nightly.attributes["clew.job.lateness_s"] == pytest.approx(nightly.start_ns / 1e9 - due.timestamp(), abs=1)
    (row,) = rows(sqlite_url, nightly.attributes["clew.job.id"])
    assert (row["trigger"], row["status"]) == ("crontab", "completed")
    # One line each, beat's own included
    assert len([log for log in otlp_sink.logs if log.body == "beat: Starting..."]) == 1


def test_another_instrumentation_is_named_once(app: Any, valkey_url: str, otlp_sink: OtlpSink, tmp_path: Path) -> None:
    libraries = folder_with("opentelemetry-instrumentation-celery==0.66b1")
    # The installed opentelemetry.instrumentation is a folder of several distributions, which must be seen together
    (tmp_path / "rival.py").write_text(
        "import opentelemetry.instrumentation as package\n"
        f"package.__path__.append({str(libraries / 'opentelemetry' / 'instrumentation')!r})\n"
        "from opentelemetry.instrumentation.celery import CeleryInstrumentor\n"
        "CeleryInstrumentor().instrument()\n"
        "from tests.integration.celery_app import app\n"
    )
    environment = otlp_sink.environment
    with CeleryProcess(
        "worker", "-c", "1", url=valkey_url, folder=tmp_path, environment=environment, app="rival"
    ) as worker:
        assert app.send_task("shop.add", (1, 2)).get(timeout=WAIT_S) == 3
        assert worker.stop() == 0
    assert worker.said.count("opentelemetry-instrumentation-celery is active as well") == 1
