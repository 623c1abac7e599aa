"""Celery: real workers on a real Valkey. What they send, receive and try again is one trace, each try a run with its record."""

from __future__ import annotations

import gc
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery, chain, chord, group
from celery.exceptions import TimeLimitExceeded
from kombu.exceptions import OperationalError

import clew
from clew.testing import CapturedSpan, CapturedTelemetry
from tests.integration.celery_process import CeleryProcess
from tests.integration.waiting import eventually
from tests.otlp_sink import OtlpSink

WAIT_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Shop:
    """A worker with two children, its telemetry and its records."""

    url: str
    sink: OtlpSink
    database: Path
    worker: CeleryProcess

    def runs(self, task_id: str, count: int = 1) -> list[CapturedSpan]:
        """The runs of a task, by their start."""
        found = self.sink.wait_for_all(
            lambda sink: [
                span
                for span in sink.spans
                if span.attributes.get("clew.job.id") == task_id and span.name.startswith("run ")
            ],
            count,
            what=f"{count} runs of {task_id}",
        )
        assert len(found) == count
        return sorted(found, key=lambda span: span.start_ns)

    def run(self, task_id: str) -> CapturedSpan:
        (found,) = self.runs(task_id)
        return found

    def rows(self, task_id: str) -> list[dict[str, Any]]:
        """The records of a task's runs, by their start, as soon as all of them have ended."""
        # A run ends after its result is known, and its record after its span
        eventually(lambda: "running" not in {row["status"] for row in self._rows(task_id)}, f"{task_id} has ended")
        return self._rows(task_id)

    def _rows(self, task_id: str) -> list[dict[str, Any]]:
        with sqlite3.connect(self.database) as connection:
            connection.row_factory = sqlite3.Row
            query = "SELECT * FROM job_runs WHERE job_id = ? ORDER BY id"
            return [dict(row) for row in connection.execute(query, (task_id,))]

    def row(self, task_id: str) -> dict[str, Any]:
        """The only record of a task."""
        (found,) = self.rows(task_id)
        return found

    def row_with(self, task_id: str, status: str) -> dict[str, Any]:
        """The only record of a task as soon as it has a status."""
        eventually(lambda: self.row(task_id)["status"] == status, f"the record of {task_id} says {status}")
        return self.row(task_id)

    def said(self, run: CapturedSpan, line: str) -> None:
        """Wait for a line in a run's trace, which is there once, and in the run."""
        found = self.sink.wait(
            lambda sink: [log for log in sink.logs if log.body == line and log.trace_id == run.trace_id], what=line
        )
        assert [log.span_id for log in found if log.span_id == run.span_id] == [run.span_id]

    def measured(self, name: str, **labels: Any) -> None:
        """Wait for a metric."""
        self.sink.wait(lambda sink: sink.total(name, **labels), what=name)


def fresh(server: str, number: int) -> str:
    """A database of the server that no other test uses, emptied."""
    url = f"{server.rpartition('/')[0]}/{number}"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture(scope="module")
def shop(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    url = fresh(valkey_server, 7)
    with OtlpSink() as sink:
        environment = {**sink.environment, "CLEW_DATABASE_URL": f"sqlite:///{folder / 'history.db'}"}
        worker = CeleryProcess("worker", "-c", "2", "-l", "info", url=url, folder=folder, environment=environment)
        with worker:
            worker.wait_until_ready()
            yield Shop(url=url, sink=sink, database=folder / "history.db", worker=worker)


def producer(url: str) -> Any:
    app = Celery("producer", broker=url, backend=url, set_as_current=False)
    app.conf.task_default_queue = "work"
    return app


@pytest.fixture(autouse=True)
def forgotten(valkey_server: str) -> Iterator[None]:
    """Celery's results say so to the server when they are collected, which must be there then."""
    yield
    gc.collect()


@pytest.fixture
def app(captured_telemetry: CapturedTelemetry, shop: Shop) -> Iterator[Any]:
    """An app that sends to the worker, and knows its tasks by name only."""
    made = clew.instrument(producer(shop.url))
    yield made
    made.close()


def sent(captured: CapturedTelemetry, task_id: str) -> CapturedSpan:
    (span,) = [span for span in captured.spans if span.attributes.get("messaging.message.id") == task_id]
    return span


def test_one_trace_from_the_request_through_the_worker_to_a_nested_task(
    captured_telemetry: CapturedTelemetry, app: Any, shop: Shop
) -> None:
    with clew.correlation("order-17"), clew.span("request"):
        outer = app.send_task("shop.nested", (1,))
    inner = outer.get(timeout=WAIT_S)
    assert app.AsyncResult(inner).get(timeout=WAIT_S) == 2

    request, send = captured_telemetry.span("request"), sent(captured_telemetry, outer.id)
    first, second = shop.run(outer.id), shop.run(inner)
    (between,) = [span for span in shop.sink.named("send work") if span.attributes["messaging.message.id"] == inner]
    trail = [request, send, first, between, second]
    assert [span.parent_id for span in trail] == ["", *(span.span_id for span in trail[:-1])]
    assert len({span.trace_id for span in trail}) == 1
    assert {span.attributes["clew.correlation.id"] for span in trail} == {"order-17"}
    assert (send.name, send.kind, between.kind) == ("send work", "producer", "producer")
    assert send.attributes["messaging.system"] == "redis"
    assert (first.name, second.name) == ("run shop.nested", "run shop.add")
    assert second.attributes["messaging.destination.name"] == "work"
    assert second.attributes["clew.job.status"] == "completed"
    assert not second.links

    counted = captured_telemetry.metric("messaging.client.sent.messages", messaging__destination__name="work")
    assert counted.value == 1
    for name in ("clew.queue.wait.duration", "messaging.client.consumed.messages"):
        shop.measured(name, messaging__destination__name="work")
    shop.measured("clew.job.duration", clew__job__name="shop.add", clew__job__status="completed")

    row = shop.row(inner)
    assert (row["job"], row["source"], row["status"], row["attempt"]) == ("shop.add", "celery", "completed", 1)
    assert (row["trace_id"], row["span_id"], row["correlation_id"]) == (second.trace_id, second.span_id, "order-17")
    assert (row["result"], row["error_type"]) == (2, None)
    assert row["scheduled_at"] <= row["started_at"] <= row["finished_at"]
    assert row["pid"] != shop.worker.process.pid


def test_each_line_leaves_once_and_in_its_trace(app: Any, shop: Shop) -> None:
    with clew.span("request"):
        added, said = app.send_task("shop.add", (41, 1)), app.send_task("shop.say", ("printed",))
    assert added.get(timeout=WAIT_S) == 42
    said.get(timeout=WAIT_S)

    for run, lines in ((shop.run(added.id), ("adding 41", "task logger")), (shop.run(said.id), ("printed",))):
        for line in lines:
            shop.said(run, line)
        for event in ("job_start", "job_end"):
            shop.said(run, event)
    message = f"Task shop.add[{added.id}] received"
    # The worker's main process sends it, in its own time
    shop.sink.wait(lambda sink: any(log.body == message for log in sink.logs), what="the task is received")
    received = [log for log in shop.sink.logs if log.body == message]
    assert [log.logger for log in received] == ["celery.worker.strategy"]
    # Nobody asked for the arguments of tasks
    assert "data" not in received[0].attributes
    on_terminal = [line for line in shop.worker.said.splitlines() if '"event": "adding 41"' in line]
    assert len(on_terminal) == 1
    assert not [line for line in shop.worker.said.splitlines() if "adding 41" in line and line not in on_terminal]


def test_a_retry_is_another_run_of_the_same_trace_that_links_to_the_try_before(
    captured_telemetry: CapturedTelemetry, app: Any, shop: Shop
) -> None:
    result = app.send_task("shop.flaky", (2,))
    assert result.get(timeout=WAIT_S) == 2

    tries = shop.runs(result.id, 3)
    assert {run.trace_id for run in tries} == {sent(captured_telemetry, result.id).trace_id}
    assert [[link.span_id for link in run.links] for run in tries] == [[], [tries[0].span_id], [tries[1].span_id]]
    assert [run.attributes.get("clew.job.attempt", 1) for run in tries] == [1, 2, 3]
    assert [run.attributes["clew.job.status"] for run in tries] == ["failed", "failed", "completed"]
    assert [run.attributes.get("clew.queue.outcome") for run in tries] == ["retried", "retried", None]
    assert [run.attributes.get("error.type") for run in tries] == ["ConnectionError", "ConnectionError", None]
    # A later try is due after its countdown
    assert tries[1].start_ns - tries[0].end_ns > 0.1e9
    shop.sink.wait(lambda sink: sink.total("clew.job.lateness", clew__job__name="shop.flaky") == 2, what="both waits")

    rows = shop.rows(result.id)
    assert [(row["attempt"], row["status"]) for row in rows] == [(1, "failed"), (2, "failed"), (3, "completed")]
    assert [row["error_message"] for row in rows] == ["try 1", "try 2", None]
    assert '"clew.queue.outcome": "retried"' in rows[0]["metadata"]


def test_asking_for_another_try_without_an_error_is_no_failure(app: Any, shop: Shop) -> None:
    result = app.send_task("shop.poll")
    assert result.get(timeout=WAIT_S) == "ready"
    first, second = shop.runs(result.id, 2)
    assert (first.status, first.attributes["clew.job.status"]) == ("unset", "cancelled")
    assert (second.status, second.attributes["clew.job.status"]) == ("unset", "completed")


def test_a_failure_is_the_runs_and_stays_the_callers(app: Any, shop: Shop) -> None:
    result = app.send_task("shop.fail")
    with pytest.raises(ValueError, match="out of stock"):
        result.get(timeout=WAIT_S)
    run, row = shop.run(result.id), shop.row(result.id)
    assert (run.status, run.status_message, run.attributes["error.type"]) == ("error", "out of stock", "ValueError")
    assert (row["status"], row["error_type"], row["error_message"]) == ("failed", "ValueError", "out of stock")
    assert "in fail" in row["traceback"]
    shop.said(run, "job_error")


def test_chains_groups_and_chords_are_one_trace(captured_telemetry: CapturedTelemetry, app: Any, shop: Shop) -> None:
    def add(*numbers: int) -> Any:
        return app.signature("shop.add", numbers)

    with clew.span("request") as request:
        chained = chain(add(1, 1), add(2), add(3)).apply_async()
        grouped = group(add(number, 0) for number in range(3)).apply_async()
        summed = chord([add(1, 1), add(2, 2)], app.signature("shop.total"), app=app).apply_async()
    assert (chained.get(timeout=WAIT_S), grouped.get(timeout=WAIT_S), summed.get(timeout=WAIT_S)) == (7, [0, 1, 2], 6)

    def run_spans(sink: OtlpSink) -> list[CapturedSpan]:
        return [span for span in sink.spans if span.trace_id == request.trace_id and span.name.startswith("run ")]

    runs = shop.sink.wait_for_all(run_spans, 9, what="nine runs in the trace")
    assert len(runs) == 9
    everything = [*captured_telemetry.spans, *shop.sink.spans]
    known = {span.span_id for span in everything}
    assert all(span.parent_id in known for span in runs)
    (last,) = [span for span in runs if span.name == "run shop.total"]
    by_id = {span.span_id: span for span in everything}
    # Sent by the worker that finished the last part
    assert by_id[by_id[last.parent_id].parent_id].name == "run shop.add"


def test_a_task_with_an_eta_is_late_by_that(app: Any, shop: Shop) -> None:
    eta = datetime.now(UTC) + timedelta(seconds=0.7)
    result = app.send_task("shop.many", (1,), eta=eta)
    assert result.get(timeout=WAIT_S) == 1
    run, row = shop.run(result.id), shop.row(result.id)
    assert datetime.fromisoformat(run.attributes["clew.job.scheduled_at"]) == eta
    assert run.start_ns / 1e9 >= eta.timestamp()
    assert run.attributes["clew.job.lateness_s"] == pytest.approx(run.start_ns / 1e9 - eta.timestamp(), abs=0.2)
    assert row["lateness_s"] == run.attributes["clew.job.lateness_s"]
    shop.measured("clew.job.lateness", clew__job__name="shop.many")


def test_what_a_task_says_of_its_message(app: Any, shop: Shop) -> None:
    ignored = app.send_task("shop.ignore")
    rejected = app.send_task("shop.reject", kwargs={"requeue": False})
    requeued = app.send_task("shop.reject", kwargs={"requeue": True})
    left = app.send_task("shop.leave")
    assert requeued.get(timeout=WAIT_S) == "taken"

    run = shop.run(ignored.id)
    assert (run.attributes["clew.job.status"], run.attributes["clew.queue.outcome"]) == ("cancelled", "ignored")
    run = shop.run(rejected.id)
    assert (run.attributes["clew.job.status"], run.attributes["clew.queue.outcome"]) == ("failed", "rejected")
    first, second = shop.runs(requeued.id, 2)
    assert (first.attributes["clew.job.status"], first.attributes["clew.queue.outcome"]) == ("cancelled", "requeued")
    assert (second.attributes["clew.job.status"], second.trace_id) == ("completed", first.trace_id)
    assert second.attributes["clew.queue.redelivery_count"] == 1
    assert [link.span_id for link in second.links] == [first.span_id]
    run = shop.run(left.id)
    assert (run.attributes["clew.job.status"], run.attributes["error.type"]) == ("failed", "SystemExit")


def test_time_limits(captured_telemetry: CapturedTelemetry, app: Any, shop: Shop) -> None:
    soft, hard, deaf = (app.send_task(f"shop.{name}") for name in ("soft", "hard", "deaf"))
    for result in (hard, deaf):
        with pytest.raises(TimeLimitExceeded):
            result.get(timeout=WAIT_S)
    run, row = shop.run(soft.id), shop.row(soft.id)
    assert (run.attributes["clew.job.status"], run.attributes["error.type"]) == ("failed", "SoftTimeLimitExceeded")
    assert row["status"] == "failed"
    for result in (hard, deaf):
        run = shop.run(result.id)
        assert (run.attributes["clew.job.status"], run.attributes["error.type"]) == ("failed", "TimeLimitExceeded")
        assert run.parent_id == sent(captured_telemetry, result.id).span_id
        assert 0.9 < run.duration_s < 5
        row = shop.row_with(result.id, "failed")
        assert (row["status"], row["error_type"], row["span_id"]) == ("failed", "TimeLimitExceeded", run.span_id)
        assert row["duration_s"] == pytest.approx(run.duration_s, abs=0.5)
        assert row["pid"] != shop.worker.process.pid


def test_revoked_and_expired_tasks(app: Any, shop: Shop) -> None:
    with redis.Redis.from_url(shop.url) as client:
        revoked = app.send_task("shop.many", (1,), countdown=1.5)
        expired = app.send_task("shop.many", (1,), countdown=1, expires=0.1)
        eventually(lambda: f"[{revoked.id}] received" in shop.worker.said, "the worker has it")
        app.control.revoke(revoked.id)
        stopped = {}
        for name in ("SIGTERM", "SIGKILL"):
            stopped[name] = app.send_task("shop.hold", (name,))
            assert client.blpop([f"{name}:held"], timeout=10)
            app.control.revoke(stopped[name].id, terminate=True, signal=name)

        for result, status in ((revoked, "cancelled"), (expired, "missed")):
            assert shop.run(result.id).attributes["clew.job.status"] == status
            row = shop.row(result.id)
            assert (row["status"], row["started_at"]) == (status, None)
        for result in stopped.values():
            run = shop.run(result.id)
            assert (run.status, run.attributes["clew.job.status"]) == ("unset", "cancelled")
            shop.row_with(result.id, "cancelled")
    shop.measured("clew.job.misfires", clew__job__name="shop.many", clew__job__misfire__reason="late")


HOSTILE: list[dict[str, Any]] = [
    {"traceparent": "00-zz-1-01", "x-correlation-id": "ünïcode \u202e", "clew-sent-at": "soon"},
    {"traceparent": ["00", 5], "x-correlation-id": {"a": 1}, "clew-sent-at": [1]},
    {"traceparent": None, "clew-earlier-try": "none", "clew-run-id": "'; DROP TABLE job_runs", "clew-sent-at": "1e308"},
    {"clew-earlier-try": {"traceparent": 7}, "clew-sent-at": "-inf", "clew-trigger": ["cron"], "celery_beat_task": "x"},
    {"clew-due-at": "tomorrow", "celery_beat_task": True, "clew-trigger": "x" * 10_000, "clew-sent-at": "nan"},
    {"x" * 5_000: "y", "traceparent": "00-" + "1" * 100_000, "\u0000": "\ud7ff", "headers": {"traceparent": 1}},
]


@pytest.mark.parametrize("headers", HOSTILE, ids=range(len(HOSTILE)))
def test_producers_without_clew_and_hostile_ones(shop: Shop, headers: dict[str, Any]) -> None:
    plain = producer(shop.url)
    root = "checkout-17"
    result = plain.send_task("shop.request", headers=headers, root_id=root)
    seen = result.get(timeout=WAIT_S)
    plain.close()
    assert headers.items() <= {**seen["headers"], "headers": headers.get("headers"), **headers}.items()
    run, row = shop.run(result.id), shop.row(result.id)
    assert (run.parent_id, run.links, run.status) == ("", (), "unset")
    # What Celery itself calls all tasks of one workflow
    assert run.attributes["clew.correlation.id"] == root
    assert (row["status"], row["trace_id"]) == ("completed", run.trace_id)


def test_the_older_protocol(captured_telemetry: CapturedTelemetry, app: Any, shop: Shop) -> None:
    app.conf.task_protocol = 1
    with clew.correlation("order-17"):
        result = app.send_task("shop.add", (20, 3))
    assert result.get(timeout=WAIT_S) == 23
    run = shop.run(result.id)
    assert run.parent_id == sent(captured_telemetry, result.id).span_id
    assert run.attributes["clew.correlation.id"] == "order-17"


def test_a_broker_that_is_away_is_the_sends_error(captured_telemetry: CapturedTelemetry) -> None:
    app = clew.instrument(Celery("lonely", broker="redis://127.0.0.1:1/0", set_as_current=False))
    with pytest.raises(OperationalError):
        app.send_task("shop.add", (1, 1), retry=False, ignore_result=True)
    send = captured_telemetry.span("send celery")
    assert (send.status, send.attributes["error.type"]) == ("error", "OperationalError")
    assert clew.correlation_id() is None


def test_a_task_that_is_called_in_place(captured_telemetry: CapturedTelemetry) -> None:
    app = clew.instrument(Celery("eager", broker="memory://", set_as_current=False))
    app.conf.task_always_eager = True

    @app.task(name="twice")  # type: ignore[untyped-decorator]
    def twice(number: int) -> int:
        return number * 2

    with clew.span("request"):
        assert twice.delay(21).get() == 42
        assert twice(4) == 8
    run = captured_telemetry.span("run twice")
    assert run.parent_id == captured_telemetry.span("request").span_id
    assert "messaging.system" not in run.attributes


def test_apps_that_nobody_asked_for_are_left_alone(captured_telemetry: CapturedTelemetry) -> None:
    clew.instrument(Celery("known", broker="memory://", set_as_current=False))
    unknown = Celery("unknown", broker="memory://", set_as_current=False)
    headers = {"tenant": "north"}
    with clew.span("request"):
        unknown.send_task("shop.add", (1, 1), headers=headers, ignore_result=True)
    assert [span.name for span in captured_telemetry.spans] == ["request"]
    assert headers == {"tenant": "north"}


def test_terminated_processes_leave_nothing_behind(shop: Shop) -> None:
    """Last, because it ends the worker: all that was asked for by a test is told by then, and by the end of the children the rest."""
    app = producer(shop.url)
    results = [app.send_task("shop.many", (number,)) for number in range(50)]
    with redis.Redis.from_url(shop.url) as client:
        eventually(lambda: client.exists(f"celery-task-meta-{results[5].id}"), "some are done")
        assert shop.worker.stop() == 0
        done = [result.id for result in results if client.exists(f"celery-task-meta-{result.id}")]
    app.close()
    assert done
    ran = {span.attributes["clew.job.id"] for span in shop.sink.spans if span.name == "run shop.many"}
    assert ran >= set(done)
    with sqlite3.connect(shop.database) as connection:
        statuses = dict(connection.execute("SELECT job_id, status FROM job_runs").fetchall())
    assert {statuses[task_id] for task_id in done} == {"completed"}
    assert "running" not in statuses.values()
