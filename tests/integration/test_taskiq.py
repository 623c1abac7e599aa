"""taskiq: real workers and a real scheduler on a real Valkey, over lists and streams, and its broker in memory for the rest."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import redis
from taskiq import InMemoryBroker, ScheduledTask, SimpleRetryMiddleware, TaskiqMiddleware, TaskiqScheduler
from taskiq.exceptions import NoResultError, SendTaskError
from taskiq.kicker import AsyncKicker
from taskiq.message import TaskiqMessage
from taskiq.schedule_sources import LabelScheduleSource
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend, RedisStreamBroker

import clew
from clew.diagnostics import ClewError
from clew.testing import CapturedSpan, CapturedTelemetry
from tests.integration.queue_process import QueueProcess
from tests.integration.server_process import BIN
from tests.integration.waiting import eventually
from tests.otlp_sink import OtlpSink

WAIT_S = 20.0
APP = "tests.integration.taskiq_app"
BROKERS: dict[str, Callable[[str], Any]] = {
    "listed": lambda url: ListQueueBroker(url, queue_name="listed"),
    "streamed": lambda url: RedisStreamBroker(url, queue_name="streamed", consumer_id="0"),
}


@dataclass(frozen=True, kw_only=True)
class Shop:
    """Workers of both brokers and a scheduler, their telemetry and their records."""

    url: str
    sink: OtlpSink
    database: Path
    worker: QueueProcess

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

    def sends(self, task_id: str, count: int) -> list[CapturedSpan]:
        """The sends of a task by the workers and the scheduler, by their start."""
        found = self.sink.wait_for_all(
            lambda sink: [
                span
                for span in sink.spans
                if span.attributes.get("messaging.message.id") == task_id and span.name.startswith("send ")
            ],
            count,
            what=f"{count} sends of {task_id}",
        )
        return sorted(found, key=lambda span: span.start_ns)

    def within(self, run: CapturedSpan, name: str) -> CapturedSpan:
        """The task's own span of that name within its run."""
        (found,) = self.sink.wait_for_all(
            lambda sink: [span for span in sink.named(name) if span.parent_id == run.span_id],
            1,
            what=f"{name} in a run",
        )
        return found

    def measured(self, name: str, **labels: Any) -> None:
        """Wait for a metric."""
        self.sink.wait(lambda sink: sink.total(name, **labels), what=name)

    def rows(self, table: str, column: str, task_id: str, count: int) -> list[dict[str, Any]]:
        """The records of a task, by their time, as soon as all of them have ended."""

        def found() -> list[dict[str, Any]]:
            with sqlite3.connect(self.database) as connection:
                connection.row_factory = sqlite3.Row
                query = f"SELECT * FROM {table} WHERE {column} = ? ORDER BY started_at"
                return [dict(row) for row in connection.execute(query, (task_id,))]

        def ended() -> bool:
            try:
                rows = found()
            except sqlite3.OperationalError:
                # The first process to record something makes the tables in its own time
                return False
            return len(rows) == count and "running" not in {row["status"] for row in rows}

        eventually(ended, f"{count} rows of {task_id} in {table}")
        return found()


@pytest.fixture(scope="module")
def shop(valkey_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    url = f"{valkey_server.rpartition('/')[0]}/9"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    with OtlpSink() as sink, ExitStack() as processes:
        environment = {**sink.environment, "CLEW_DATABASE_URL": f"sqlite:///{folder / 'history.db'}"}
        taskiq = (sys.executable, "-m", "taskiq")
        worker, *others = (
            processes.enter_context(QueueProcess(*taskiq, *arguments, url=url, folder=folder, environment=environment))
            for arguments in (
                ("worker", f"{APP}:listed", "--workers", "1"),
                ("worker", f"{APP}:streamed", "--workers", "1"),
                ("scheduler", f"{APP}:scheduler", "--update-interval", "1", "--loop-interval", "1"),
            )
        )
        worker.wait_until_said("Listening started")
        others[0].wait_until_said("Listening started")
        yield Shop(url=url, sink=sink, database=folder / "history.db", worker=worker)
        # With or without clew: a worker of a stream that has run tasks goes on when it is told to stop
        others[0].kill()


def with_broker(broker: Any, act: Callable[[Any], Awaitable[Any]]) -> Any:
    """Start a broker, have something done with it, and stop it."""

    async def main() -> Any:
        await broker.startup()
        try:
            return await act(broker)
        finally:
            await broker.shutdown()

    return asyncio.run(main())


def with_producer(shop: Shop, kind: str, act: Callable[[Any], Awaitable[Any]]) -> Any:
    """Have something sent by a producer of this process, which knows the tasks by name only."""
    broker = BROKERS[kind](shop.url).with_result_backend(RedisAsyncResultBackend(shop.url))
    return with_broker(clew.instrument(broker), act)


async def kiq(broker: Any, name: str, *args: Any, **labels: Any) -> Any:
    return await AsyncKicker(name, broker, labels).kiq(*args)


async def result_of(task: Any) -> Any:
    return await task.wait_result(check_interval=0.02, timeout=WAIT_S)


def sent(captured: CapturedTelemetry, task_id: str) -> CapturedSpan:
    (span,) = [
        span
        for span in captured.spans
        if span.attributes.get("messaging.message.id") == task_id and span.name.startswith("send ")
    ]
    return span


@pytest.mark.parametrize("kind", BROKERS)
def test_one_trace_from_the_request_through_the_worker_to_a_nested_task(
    captured_telemetry: CapturedTelemetry, shop: Shop, kind: str
) -> None:
    async def act(broker: Any) -> Any:
        with clew.correlation("order-17"), clew.span("request"):
            task = await kiq(broker, "shop.nested", 41)
        return task.task_id, (await result_of(task)).return_value

    outer, inner = with_producer(shop, kind, act)
    request, send = captured_telemetry.span("request"), sent(captured_telemetry, outer)
    (first,), (second,), (between,) = shop.runs(outer), shop.runs(inner), shop.sends(inner, 1)
    inside = shop.within(second, "inside")
    trail = [request, send, first, between, second, inside]
    assert [span.parent_id for span in trail] == ["", *(span.span_id for span in trail[:-1])]
    assert len({span.trace_id for span in trail}) == 1
    assert {span.attributes["clew.correlation.id"] for span in trail} == {"order-17"}
    assert (send.name, send.kind, between.name) == (f"send {kind}", "producer", f"send {kind}")
    assert (first.name, second.name) == ("run shop.nested", "run shop.add")
    assert (second.attributes["messaging.system"], second.attributes["clew.job.status"]) == ("redis", "completed")
    line = shop.sink.wait(
        lambda sink: [log for log in sink.logs if log.body == "adding 41" and log.span_id == second.span_id],
        what="the task's line",
    )
    assert len(line) == 1

    counted = captured_telemetry.metric("messaging.client.sent.messages", messaging__destination__name=kind)
    assert counted.value == 1
    for name in ("clew.queue.wait.duration", "messaging.client.consumed.messages"):
        shop.measured(name, messaging__destination__name=kind)

    (row,) = shop.rows("job_runs", "job_id", inner, 1)
    assert (row["job"], row["source"], row["status"], row["attempt"]) == ("shop.add", "taskiq", "completed", 1)
    assert (row["trace_id"], row["span_id"], row["correlation_id"]) == (second.trace_id, second.span_id, "order-17")
    assert (json.loads(str(row["result"])), row["error_type"]) == (42, None)
    message, received = shop.rows("queue_messages", "message_id", inner, 2)
    assert (message["direction"], message["status"], message["span_id"]) == ("sent", "sent", between.span_id)
    assert (received["direction"], received["status"], received["span_id"]) == (
        "received",
        "processed",
        second.span_id,
    )
    assert (received["queue"], received["type"], received["source"]) == (kind, "shop.add", "shop")
    assert 0 <= received["wait_s"] < WAIT_S
    assert json.loads(received["payload"]) == json.loads(message["payload"]) == {"args": [41, 1], "kwargs": {}}


@pytest.mark.parametrize("kind", BROKERS)
def test_a_retry_is_another_run_of_the_same_trace_that_links_to_the_try_before(
    captured_telemetry: CapturedTelemetry, shop: Shop, kind: str
) -> None:
    async def act(broker: Any) -> Any:
        task = await kiq(broker, "shop.flaky", 2, retry_on_error=True)
        return task.task_id, await result_of(task)

    # Over the list by SimpleRetryMiddleware at once, over the stream by SmartRetryMiddleware and the scheduler
    task_id, result = with_producer(shop, kind, act)
    assert (result.is_err, result.return_value, result.error) == (False, 2, None)
    assert not [label for label in result.labels if label.startswith(("clew-", "trace", "baggage"))]

    tries = shop.runs(task_id, 3)
    assert {run.trace_id for run in tries} == {sent(captured_telemetry, task_id).trace_id}
    assert [[link.span_id for link in run.links] for run in tries] == [[], [tries[0].span_id], [tries[1].span_id]]
    assert [run.attributes.get("clew.job.attempt", 1) for run in tries] == [1, 2, 3]
    assert [run.attributes["clew.job.status"] for run in tries] == ["failed", "failed", "completed"]
    assert [run.attributes.get("clew.queue.outcome") for run in tries] == ["retried", "retried", None]
    assert [run.attributes.get("error.type") for run in tries] == ["ConnectionError", "ConnectionError", None]
    again = shop.sends(task_id, 2)
    assert [span.parent_id for span in again] == [run.span_id for run in tries[:2]]
    assert [run.parent_id for run in tries[1:]] == [span.span_id for span in again]

    rows = shop.rows("job_runs", "job_id", task_id, 3)
    assert [(row["attempt"], row["status"]) for row in rows] == [(1, "failed"), (2, "failed"), (3, "completed")]
    assert [row["error_message"] for row in rows] == ["try 1", "try 2", None]
    received = [row for row in shop.rows("queue_messages", "message_id", task_id, 5) if row["direction"] == "received"]
    assert [row["status"] for row in received] == ["returned", "returned", "processed"]


def test_twenty_at_once_keep_their_parents(captured_telemetry: CapturedTelemetry, shop: Shop) -> None:
    async def one(broker: Any, number: int) -> tuple[int, str]:
        with clew.correlation(f"order-{number}"), clew.span(f"request-{number}"):
            task = await kiq(broker, "shop.add" if number % 2 else "shop.plain", number, 1)
        assert (await result_of(task)).return_value == number + 1
        return number, str(task.task_id)

    async def act(broker: Any) -> Any:
        return await asyncio.gather(*(one(broker, number) for number in range(100, 120)))

    for number, task_id in with_producer(shop, "listed", act):
        request, send, (run,) = (
            captured_telemetry.span(f"request-{number}"),
            sent(captured_telemetry, task_id),
            shop.runs(task_id),
        )
        inside = shop.within(run, "inside")
        assert (send.parent_id, run.parent_id) == (request.span_id, send.span_id)
        assert inside.attributes["number"] == number
        assert {span.attributes["clew.correlation.id"] for span in (send, run, inside)} == {f"order-{number}"}


def test_how_a_try_ends(captured_telemetry: CapturedTelemetry, shop: Shop) -> None:
    async def act(broker: Any) -> Any:
        tasks = [await kiq(broker, f"shop.{name}") for name in ("fail", "reject", "requeue")]
        return [(task.task_id, await result_of(task)) for task in tasks]

    (failed, error), (rejected, rejection), (requeued, taken) = with_producer(shop, "streamed", act)
    assert isinstance(error.error, ValueError)
    assert rejection.is_err
    assert taken.return_value == "taken"
    (run,) = shop.runs(failed)
    assert (run.status, run.status_message, run.attributes["error.type"]) == ("error", "out of stock", "ValueError")
    (row,) = shop.rows("job_runs", "job_id", failed, 1)
    assert (row["status"], row["error_type"], row["error_message"]) == ("failed", "ValueError", "out of stock")
    assert "in fail" in row["traceback"]
    assert [row["status"] for row in shop.rows("queue_messages", "message_id", failed, 1)] == ["failed"]

    (run,) = shop.runs(rejected)
    assert (run.attributes["clew.job.status"], run.attributes["clew.queue.outcome"]) == ("failed", "rejected")
    assert [row["status"] for row in shop.rows("queue_messages", "message_id", rejected, 1)] == ["dead_lettered"]

    first, second = shop.runs(requeued, 2)
    assert (first.attributes["clew.job.status"], first.attributes["clew.queue.outcome"]) == ("cancelled", "requeued")
    assert (second.attributes["clew.job.status"], second.attributes["clew.queue.redelivery_count"]) == ("completed", 1)
    assert [link.span_id for link in second.links] == [first.span_id]
    assert first.trace_id == second.trace_id == sent(captured_telemetry, requeued).trace_id


def test_what_the_scheduler_sends_has_a_trace_for_each_run(shop: Shop) -> None:
    ticks = shop.sink.wait_for_all(lambda sink: sink.named("run shop.tick"), 2, what="two ticks")[:2]
    assert {run.attributes["clew.job.trigger"] for run in ticks} == {"interval"}
    assert [run.parent_id for run in ticks] == ["", ""]
    assert len({run.trace_id for run in ticks}) == 2
    for run in ticks:
        (send,) = shop.sends(run.attributes["clew.job.id"], 1)
        assert [link.span_id for link in run.links] == [send.span_id]
        assert send.trace_id != run.trace_id
        shop.within(run, "ticking")
    shop.sink.wait(lambda sink: sink.total("clew.job.lateness", clew__job__name="shop.tick") >= 2, what="its lateness")


# In one process


def spans(captured: CapturedTelemetry, name: str) -> list[CapturedSpan]:
    return [span for span in captured.spans if span.name == name]


def test_instrumenting_twice_and_another_object(captured_telemetry: CapturedTelemetry) -> None:
    broker: Any = InMemoryBroker(await_inplace=True)
    assert clew.instrument(broker) is broker
    clew.instrument(broker)

    @broker.task("shop.add")  # type: ignore[untyped-decorator] # the broker is Any
    async def add(left: int) -> int:
        return left + 1

    async def act(_: Any) -> Any:
        # Run within the send, which is current again afterwards, as is the request
        with clew.span("request"):
            task = await add.kiq(1)
            with clew.span("afterwards"):
                pass
        return await task.wait_result()

    assert with_broker(broker, act).return_value == 2
    (request,), (send,), (run,), (afterwards,) = (
        spans(captured_telemetry, name) for name in ("request", "send taskiq", "run shop.add", "afterwards")
    )
    assert (send.parent_id, run.parent_id, afterwards.parent_id) == (request.span_id, send.span_id, request.span_id)
    assert run.attributes["messaging.system"] == "memory"


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_twenty_at_once_in_memory(captured_telemetry: CapturedTelemetry, kind: str) -> None:
    broker: Any = clew.instrument(InMemoryBroker(sync_tasks_pool_size=20))

    async def later(number: int) -> None:
        with clew.span(f"outer-{number}"):
            await asyncio.sleep(0.01 * (number % 3))
            with clew.span(f"inside-{number}"):
                await asyncio.sleep(0.01)

    def plain(number: int) -> None:
        with clew.span(f"outer-{number}"), clew.span(f"inside-{number}"):
            pass

    task = broker.register_task(later if kind == "async" else plain, "shop.work")

    async def one(number: int) -> str:
        with clew.correlation(f"order-{number}"), clew.span(f"request-{number}"):
            sent_task = await task.kiq(number)
        await sent_task.wait_result()
        return str(sent_task.task_id)

    async def act(_: Any) -> Any:
        ids = await asyncio.gather(*(one(number) for number in range(20)))
        await broker.wait_all()
        return ids

    for number, task_id in enumerate(with_broker(broker, act)):
        (run,) = [span for span in captured_telemetry.spans if span.attributes.get("clew.job.id") == task_id]
        trail = [
            captured_telemetry.span(f"request-{number}"),
            sent(captured_telemetry, task_id),
            run,
            captured_telemetry.span(f"outer-{number}"),
            captured_telemetry.span(f"inside-{number}"),
        ]
        assert [span.parent_id for span in trail] == ["", *(span.span_id for span in trail[:-1])]
        assert {span.attributes["clew.correlation.id"] for span in trail} == {f"order-{number}"}


def test_a_send_that_fails_is_told(captured_telemetry: CapturedTelemetry) -> None:
    class Down(InMemoryBroker):
        async def kick(self, message: Any) -> None:
            raise ConnectionRefusedError("nobody listens")

    async def act(broker: Any) -> None:
        with clew.span("request"):
            with pytest.raises(SendTaskError):
                await kiq(broker, "shop.add", 1)
            with clew.span("afterwards"):
                pass
        with pytest.raises(SendTaskError):
            # What can't be written never gets as far as the broker
            await kiq(broker, "shop.add", object())

    with_broker(clew.instrument(Down()), act)
    refused, unwritable = spans(captured_telemetry, "send taskiq")
    assert (refused.status, refused.attributes["error.type"]) == ("error", "ConnectionRefusedError")
    assert refused.status_message == "nobody listens"
    assert unwritable.attributes["error.type"] == "PydanticSerializationError"
    assert captured_telemetry.span("afterwards").parent_id == captured_telemetry.span("request").span_id


def test_a_try_that_another_middleware_breaks_off_ends(captured_telemetry: CapturedTelemetry) -> None:
    class Broken(TaskiqMiddleware):
        def post_execute(self, message: Any, result: Any) -> None:
            raise LookupError("no such table")

    broker: Any = clew.instrument(InMemoryBroker(await_inplace=True).with_middlewares(Broken()))
    broker.register_task(asyncio.sleep, "shop.sleep")

    async def act(_: Any) -> None:
        with pytest.raises(SendTaskError):
            await kiq(broker, "shop.sleep", 0)

    with_broker(broker, act)
    run = captured_telemetry.span("run shop.sleep")
    assert (run.status, run.attributes["error.type"]) == ("error", "LookupError")
    assert run.attributes["clew.job.status"] == "failed"


def test_timeouts_ignored_results_and_the_last_try(captured_telemetry: CapturedTelemetry) -> None:
    retry = SimpleRetryMiddleware(default_retry_count=2, no_result_on_retry=False)
    broker: Any = clew.instrument(InMemoryBroker().with_middlewares(retry))

    async def slow() -> None:
        await asyncio.sleep(WAIT_S)

    async def quiet() -> None:
        raise NoResultError

    async def fail() -> None:
        raise KeyError("document-17 🗎")

    for function in (slow, quiet, fail):
        broker.register_task(function, f"shop.{function.__name__}")

    async def act(_: Any) -> None:
        await (await kiq(broker, "shop.slow", timeout=0.05)).wait_result()
        await kiq(broker, "shop.quiet")
        await (await kiq(broker, "shop.fail", retry_on_error=True)).wait_result()
        while broker._running_tasks:
            await broker.wait_all()

    with_broker(broker, act)
    slow_run, quiet_run = (captured_telemetry.span(f"run shop.{name}") for name in ("slow", "quiet"))
    assert (slow_run.attributes["clew.job.status"], slow_run.attributes["error.type"]) == ("failed", "TimeoutError")
    assert quiet_run.attributes["clew.job.status"] == "cancelled"
    assert (quiet_run.status, quiet_run.attributes["clew.queue.outcome"]) == ("unset", "ignored")
    first, last = sorted(spans(captured_telemetry, "run shop.fail"), key=lambda span: span.start_ns)
    assert first.attributes["clew.queue.outcome"] == "retried"
    assert "clew.queue.outcome" not in last.attributes
    assert (last.attributes["clew.job.attempt"], last.status_message) == (2, "'document-17 🗎'")
    assert [link.span_id for link in last.links] == [first.span_id]


@pytest.mark.parametrize(
    "labels",
    [
        {"_retries": "soon", "clew-sent-at": "never", "traceparent": 17, "clew-earlier-try": 3, "clew-trigger": 4},
        {"_retries": -4, "clew-sent-at": "-1e300", "traceparent": "00-nonsense", "clew-due-at": "tomorrow"},
        {"_retries": 1 << 70, "X-Taskiq-requeue": "often", "clew-trigger": "cron" * 1_000, "clew-due-at": 1},
    ],
)
def test_whatever_strangers_write_into_labels_the_task_runs(
    captured_telemetry: CapturedTelemetry, labels: dict[str, Any]
) -> None:
    broker: Any = clew.instrument(InMemoryBroker(await_inplace=True))
    broker.register_task(asyncio.sleep, "shop.sleep")
    message = TaskiqMessage(task_id="17", task_name="shop.sleep", labels=labels, args=[0, "done"], kwargs={})

    async def act(_: Any) -> Any:
        await broker.kick(broker.formatter.dumps(message))
        return await broker.result_backend.get_result("17")

    assert with_broker(broker, act).return_value == "done"
    run = captured_telemetry.span("run shop.sleep")
    assert (run.parent_id, run.attributes["clew.job.status"]) == ("", "completed")


def test_a_task_tells_what_kind_of_schedule_it_was_sent_for(captured_telemetry: CapturedTelemetry) -> None:
    broker: Any = InMemoryBroker()
    broker.register_task(asyncio.sleep, "shop.sleep")
    source = LabelScheduleSource(broker)
    scheduler = clew.instrument(TaskiqScheduler(broker, [source]))
    due_at = datetime.now(UTC) - timedelta(seconds=90)
    given: list[dict[str, Any]] = [{"cron": "* * * * *"}, {"time": due_at}, {"time": due_at.replace(tzinfo=None)}]

    async def act(_: Any) -> None:
        for number, schedule in enumerate(given):
            task = ScheduledTask(
                task_name="shop.sleep", labels={}, args=[0], kwargs={}, task_id=f"task-{number}", **schedule
            )
            await scheduler.on_ready(source, task)
        await broker.wait_all()

    with_broker(broker, act)
    cron, *once = sorted(
        spans(captured_telemetry, "run shop.sleep"), key=lambda run: str(run.attributes["clew.job.id"])
    )
    send = sent(captured_telemetry, "task-0")
    assert (cron.attributes["clew.job.trigger"], cron.parent_id) == ("cron", "")
    assert [link.span_id for link in cron.links] == [send.span_id]
    # Due when its minute began
    assert str(cron.attributes["clew.job.scheduled_at"]).endswith(":00+00:00")
    for number, run in enumerate(once, 1):
        assert run.parent_id == sent(captured_telemetry, f"task-{number}").span_id
        assert run.attributes["clew.job.trigger"] == "time"
        assert run.attributes["clew.job.scheduled_at"] == due_at.isoformat()
        assert 90 <= float(run.attributes["clew.job.lateness_s"]) < 90 + WAIT_S


def test_opentelemetrys_middleware_beside_it_is_named(captured_telemetry: CapturedTelemetry) -> None:
    class OpenTelemetryMiddleware(TaskiqMiddleware):
        """Stands for taskiq's, which needs a package more."""

    broker = clew.instrument(InMemoryBroker().with_middlewares(OpenTelemetryMiddleware()))
    del captured_telemetry
    with pytest.raises(ClewError, match="OpenTelemetryMiddleware is active as well"):
        asyncio.run(broker.startup())


def test_clew_run_instruments_a_worker_whose_app_knows_nothing_of_it(
    captured_telemetry: CapturedTelemetry, shop: Shop, tmp_path: Path
) -> None:
    (tmp_path / "shopping.py").write_text(
        "import os\n"
        "from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend\n"
        "url = os.environ['VALKEY_URL']\n"
        "broker = ListQueueBroker(url, queue_name='shopping').with_result_backend(RedisAsyncResultBackend(url))\n"
        "@broker.task('shop.buy')\n"
        "def buy(what):\n"
        "    return what\n"
    )

    async def act(broker: Any) -> Any:
        with clew.span("request"):
            task = await kiq(broker, "shop.buy", "bread")
        return task.task_id, (await result_of(task)).return_value

    command = (str(BIN / "clew"), "run", "taskiq", "worker", "shopping:broker", "--workers", "1")
    environment = {**shop.sink.environment, "CLEW_HISTORY": "false"}
    with QueueProcess(*command, url=shop.url, folder=tmp_path, environment=environment) as worker:
        worker.wait_until_said("Listening started")
        broker = ListQueueBroker(shop.url, queue_name="shopping")
        broker = broker.with_result_backend(RedisAsyncResultBackend(shop.url))
        task_id, bought = with_broker(clew.instrument(broker), act)
        assert bought == "bread"
        (run,) = shop.runs(task_id)
    assert run.parent_id == sent(captured_telemetry, task_id).span_id
    # The redis client that the worker saves the result with is instrumented as well
    assert [span for span in shop.sink.spans if span.parent_id == run.span_id and "db.system.name" in span.attributes]
