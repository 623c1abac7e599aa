"""taskiq: workers that are killed, and sync tasks in a pool of processes, on a real Valkey."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from taskiq import AsyncTaskiqTask
from taskiq.kicker import AsyncKicker
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker

import clew
from clew.testing import CapturedLog, CapturedSpan, CapturedTelemetry
from tests.integration.queue_process import QueueProcess
from tests.integration.waiting import eventually
from tests.otlp_sink import OtlpSink

WAIT_S = 30.0
APP = "tests.integration.taskiq_held_app"
BROKERS: dict[str, Callable[[str], Any]] = {
    "listed": lambda url: ListQueueBroker(url, queue_name="held-list"),
    "streamed": lambda url: RedisStreamBroker(url, queue_name="held-stream", consumer_id="0"),
}


@pytest.fixture
def sqlite_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path / 'history.db'}"
    monkeypatch.setenv("CLEW_DATABASE_URL", url)
    return url


@contextmanager
def worker(
    kind: str, *arguments: str, url: str, folder: Path, environment: Mapping[str, str]
) -> Iterator[QueueProcess]:
    """Run a worker of a broker."""
    command = (sys.executable, "-m", "taskiq", "worker", f"{APP}:{kind}", "--workers", "1", *arguments)
    chosen = {**environment, "CLEW_HEARTBEAT_S": "0.5"}
    with QueueProcess(*command, url=url, folder=folder, environment=chosen) as process:
        process.wait_until_said("Listening started")
        yield process
        # A worker of a stream that has run tasks goes on when it is told to stop, with or without clew
        if kind == "streamed":
            process.kill()


def with_producer(url: str, kind: str, act: Callable[[Any], Awaitable[Any]]) -> Any:
    """Have something done by a producer, which knows the tasks by name only."""

    async def main() -> Any:
        broker = BROKERS[kind](url).with_result_backend(RedisAsyncResultBackend(url))
        clew.instrument(broker)
        await broker.startup()
        try:
            return await act(broker)
        finally:
            await broker.shutdown()

    return asyncio.run(main())


async def kiq(broker: Any, name: str, *args: Any) -> Any:
    return await AsyncKicker(name, broker, {}).kiq(*args)


def send(url: str, kind: str, name: str, *args: Any) -> str:
    async def act(broker: Any) -> str:
        return str((await kiq(broker, name, *args)).task_id)

    return str(with_producer(url, kind, act))


def result_of(url: str, task_id: str) -> Any:
    async def act(broker: Any) -> Any:
        waiting = AsyncTaskiqTask(task_id, broker.result_backend)
        return await waiting.wait_result(check_interval=0.02, timeout=WAIT_S)

    return with_producer(url, "listed", act)


def held(client: Any, key: str) -> int:
    """Wait until a task is at work and return the process that runs it."""
    found = client.blpop([f"{key}:held"], timeout=WAIT_S)
    assert found is not None, f"nobody took {key}"
    return int(found[1])


def rows(url: str, task_id: str) -> list[dict[str, Any]]:
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            query = text("SELECT * FROM job_runs WHERE job_id = :job_id ORDER BY started_at")
            return [dict(row._mapping) for row in connection.execute(query, {"job_id": task_id})]
    finally:
        engine.dispose()


def wait_until_it_records(url: str, database_url: str, kind: str) -> None:
    """Wait until a worker has made the tables, which no run waits for longer than it may."""
    task_id = send(url, kind, "held.poke")

    def is_kept() -> bool:
        try:
            return [row["status"] for row in rows(database_url, task_id)] == ["completed"]
        except DBAPIError:
            return False

    eventually(is_kept, "the record of a task", within_s=60.0)


def runs(sink: OtlpSink, task_id: str) -> list[CapturedSpan]:
    found = [
        span for span in sink.spans if span.attributes.get("clew.job.id") == task_id and span.name.startswith("run ")
    ]
    return sorted(found, key=lambda span: span.start_ns)


def lost(sink: OtlpSink, captured: CapturedTelemetry) -> list[CapturedLog]:
    """What was told to be lost, by the workers or by the producer, whichever noticed."""
    return [log for log in (*sink.logs, *captured.logs) if log.body == "job_lost"]


def test_a_worker_that_is_killed_is_lost_once_and_the_list_has_lost_its_task(
    captured_telemetry: CapturedTelemetry, valkey_url: str, otlp_sink: OtlpSink, database_url: str, tmp_path: Path
) -> None:
    with (
        redis.Redis.from_url(valkey_url, socket_timeout=60) as client,
        worker("listed", url=valkey_url, folder=tmp_path, environment=otlp_sink.environment) as first,
    ):
        wait_until_it_records(valkey_url, database_url, "listed")
        with clew.span("request") as request:
            task_id = send(valkey_url, "listed", "held.hold", "one")
        # taskiq's main process starts another one in the place of one that is killed
        os.kill(held(client, "one"), signal.SIGKILL)
        eventually(lambda: first.said.count("Listening started") == 2, "another process listens", within_s=60.0)
        eventually(lambda: lost(otlp_sink, captured_telemetry), "it is lost", within_s=60.0)
        # All that was sent before it was killed is done; what a list has given is not there again
        poked = send(valkey_url, "listed", "held.poke")
        assert not result_of(valkey_url, poked).is_err
        eventually(lambda: [row["status"] for row in rows(database_url, poked)] == ["completed"], "its record")
    (row,) = rows(database_url, task_id)
    assert (row["status"], row["trace_id"]) == ("lost", request.trace_id)
    (log,) = lost(otlp_sink, captured_telemetry)
    assert (log.trace_id, log.span_id) == (request.trace_id, row["span_id"])
    assert runs(otlp_sink, task_id) == []


def test_a_worker_that_is_killed_is_lost_once_and_another_takes_its_task_from_the_stream(
    captured_telemetry: CapturedTelemetry, valkey_url: str, otlp_sink: OtlpSink, database_url: str, tmp_path: Path
) -> None:
    environment = otlp_sink.environment
    with redis.Redis.from_url(valkey_url, socket_timeout=60) as client:
        with worker("streamed", url=valkey_url, folder=tmp_path, environment=environment) as first:
            wait_until_it_records(valkey_url, database_url, "streamed")
            with clew.span("request") as request:
                task_id = send(valkey_url, "streamed", "held.hold", "one")
            held(client, "one")
            # With its main process
            first.kill()
        with (
            worker("streamed", url=valkey_url, folder=tmp_path, environment=environment),
            worker("streamed", url=valkey_url, folder=tmp_path, environment=environment),
        ):
            client.rpush("one:go", *["go"] * 5)

            def is_taken() -> bool:
                # A worker looks for what others have left when something new has come
                send(valkey_url, "streamed", "held.poke")
                return "completed" in {row["status"] for row in rows(database_url, task_id)}

            eventually(is_taken, "another worker has taken it", within_s=60.0)
            eventually(lambda: lost(otlp_sink, captured_telemetry), "it is lost", within_s=60.0)
            assert result_of(valkey_url, task_id).return_value != "nobody came"
            eventually(
                lambda: "running" not in {row["status"] for row in rows(database_url, task_id)}, "all have ended"
            )
            tries = rows(database_url, task_id)
            eventually(lambda: len(runs(otlp_sink, task_id)) == len(tries) - 1, "their spans have come")
    before, *others = tries
    assert (before["status"], {row["status"] for row in others}) == ("lost", {"completed"})
    assert (
        {row["trace_id"] for row in tries} == {run.trace_id for run in runs(otlp_sink, task_id)} == {request.trace_id}
    )
    (log,) = lost(otlp_sink, captured_telemetry)
    assert (log.trace_id, log.span_id) == (request.trace_id, before["span_id"])


POOL = ("--use-process-pool", "--max-process-pool-processes", "2")


def test_sync_tasks_in_a_pool_of_processes_are_within_their_runs(
    captured_telemetry: CapturedTelemetry, valkey_url: str, otlp_sink: OtlpSink, sqlite_url: str, tmp_path: Path
) -> None:
    async def act(broker: Any) -> Any:
        async def one(number: int) -> tuple[str, str, Any]:
            with clew.correlation(f"order-{number}"), clew.span(f"request-{number}"):
                task = await kiq(broker, "held.decorated", number)
                trace_id = clew.trace_id()
            return trace_id, task.task_id, (await task.wait_result(timeout=WAIT_S)).return_value

        return await asyncio.gather(*(one(number) for number in range(12)))

    # Nothing leaves but at the end
    environment = {**otlp_sink.environment, "OTEL_BSP_SCHEDULE_DELAY": "60000", "OTEL_BLRP_SCHEDULE_DELAY": "60000"}
    with worker("listed", *POOL, url=valkey_url, folder=tmp_path, environment=environment) as process:
        done = with_producer(valkey_url, "listed", act)
        failed = send(valkey_url, "listed", "held.fail", "no")
        assert isinstance(result_of(valkey_url, failed).error, ValueError)
        poked = result_of(valkey_url, send(valkey_url, "listed", "held.poke")).return_value
        assert process.stop() == 0
    assert poked not in {pid for _, _, pid in done}
    for number, (trace_id, task_id, pid) in enumerate(done):
        (run,) = runs(otlp_sink, task_id)
        (inside,) = [span for span in otlp_sink.named("counting") if span.parent_id == run.span_id]
        assert (inside.attributes["number"], run.trace_id, inside.trace_id) == (number, trace_id, trace_id)
        assert (run.resource["process.pid"], inside.resource["process.pid"]) == (poked, pid)
        assert {span.attributes["clew.correlation.id"] for span in (run, inside)} == {f"order-{number}"}
        assert [row["status"] for row in rows(sqlite_url, task_id)] == ["completed"]
    (run,) = runs(otlp_sink, failed)
    (failing,) = otlp_sink.named("failing")
    assert (run.attributes["error.type"], failing.parent_id) == ("ValueError", run.span_id)
    assert otlp_sink.total("held.counted") == len(done)
    # Each run is told of once, by the worker
    assert len([log for log in otlp_sink.logs if log.body == "job_start"]) == len(done) + 2
    assert lost(otlp_sink, captured_telemetry) == []


def test_a_process_of_a_pool_that_is_killed_fails_its_task_and_a_worker_that_is_killed_loses_it(
    captured_telemetry: CapturedTelemetry, valkey_url: str, otlp_sink: OtlpSink, sqlite_url: str, tmp_path: Path
) -> None:
    environment = otlp_sink.environment
    with redis.Redis.from_url(valkey_url, socket_timeout=60) as client:
        with worker("listed", *POOL, url=valkey_url, folder=tmp_path, environment=environment):
            task_id = send(valkey_url, "listed", "held.hold", "one")
            os.kill(held(client, "one"), signal.SIGKILL)
            eventually(lambda: [row["status"] for row in rows(sqlite_url, task_id)] == ["failed"], "it has failed")
            (row,) = rows(sqlite_url, task_id)
            assert row["error_type"] == "BrokenProcessPool"
        with worker("listed", *POOL, url=valkey_url, folder=tmp_path, environment=environment) as process:
            with clew.span("request") as request:
                task_id = send(valkey_url, "listed", "held.hold", "two")
            held(client, "two")
            (row,) = rows(sqlite_url, task_id)
            assert row["status"] == "running"
            # The worker, not its pool: those processes go on
            os.kill(row["pid"], signal.SIGKILL)
            eventually(lambda: process.said.count("Listening started") == 2, "another process listens", within_s=60.0)
            eventually(lambda: lost(otlp_sink, captured_telemetry), "it is lost", within_s=60.0)
            client.rpush("two:go", "go")
            (holding,) = otlp_sink.wait_for_all(
                lambda sink: [span for span in sink.named("holding") if span.attributes["key"] == "two"],
                1,
                what="what the task did",
            )
    assert holding.trace_id == request.trace_id
    (row,) = rows(sqlite_url, task_id)
    assert (row["status"], row["trace_id"]) == ("lost", request.trace_id)
    assert [log.span_id for log in lost(otlp_sink, captured_telemetry)] == [row["span_id"]]
