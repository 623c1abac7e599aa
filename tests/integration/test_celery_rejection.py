"""Celery: messages that a real worker can make no task of are counted and recorded, whether it throws them away or ends."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu.connection import Connection

import clew
from clew.testing import CapturedSpan, CapturedTelemetry
from tests.integration.celery_process import CeleryProcess
from tests.integration.waiting import eventually
from tests.otlp_sink import OtlpSink

QUEUE = "work"


def put(url: str, body: bytes, *, task: str | None, content_type: str = "application/json") -> str:
    """Put a message on the worker's queue as some other program may, in this thread, and return its id."""
    message_id = str(uuid.uuid4())
    headers = {"id": message_id, **({} if task is None else {"task": task})}
    clew.inject(headers)
    with Connection(url) as connection:
        connection.Producer().publish(
            body,
            exchange="",
            routing_key=QUEUE,
            content_type=content_type,
            content_encoding="utf-8",
            headers=headers,
            correlation_id=message_id,
        )
    return message_id


def the_record(database: Path, message_id: str) -> dict[str, Any]:
    """Return the only record of a message's receipt, as soon as there is one."""

    def found() -> list[dict[str, Any]]:
        with sqlite3.connect(database) as connection:
            connection.row_factory = sqlite3.Row
            query = "SELECT * FROM queue_messages WHERE message_id = ? AND direction = 'received'"
            return [dict(row) for row in connection.execute(query, (message_id,))]

    eventually(found, f"{message_id} is recorded")
    (row,) = found()
    return row


def rejected(sink: OtlpSink, message_id: str, count: int = 1) -> list[CapturedSpan]:
    return sink.wait_for_all(
        lambda sink: [span for span in sink.spans if span.attributes.get("messaging.message.id") == message_id],
        count,
        what=f"spans of {message_id}",
    )


@pytest.fixture
def app(valkey_url: str) -> Iterator[Any]:
    made = Celery("producer", broker=valkey_url, backend=valkey_url, set_as_current=False)
    made.conf.task_default_queue = QUEUE
    yield made
    made.close()


def settings(sink: OtlpSink, folder: Path) -> dict[str, str]:
    return {**sink.environment, "CLEW_DATABASE_URL": f"sqlite:///{folder / 'history.db'}"}


def test_what_a_worker_throws_away_is_told_in_its_senders_trace_and_the_worker_goes_on(
    captured_telemetry: CapturedTelemetry, app: Any, valkey_url: str, otlp_sink: OtlpSink, tmp_path: Path
) -> None:
    database = tmp_path / "history.db"
    with CeleryProcess(
        "worker", "-c", "1", "-l", "info", url=valkey_url, folder=tmp_path, environment=settings(otlp_sink, tmp_path)
    ) as worker:
        worker.wait_until_ready()
        with clew.correlation("order-17"), clew.span("request") as request:
            ids = {
                "DecodeError": put(valkey_url, b"\0not an envelope", task="shop.many"),
                "NotRegistered": put(valkey_url, b'[[17], {"colour": "red"}, {}]', task="shop.nobody"),
                "InvalidTaskError": put(valkey_url, b"{}", task=None),
                "ContentDisallowed": put(
                    valkey_url, b"\0", task="shop.many", content_type="application/x-python-serialize"
                ),
            }
        # Those of before did not hold it up
        assert app.send_task("shop.many", (7,)).get(timeout=20) == 7
        for error, message_id in ids.items():
            (span,) = rejected(otlp_sink, message_id)
            assert (span.name, span.kind, span.status) == ("process work", "consumer", "error")
            assert (span.trace_id, span.parent_id) == (request.trace_id, request.span_id)
            assert span.attributes["error.type"].rpartition(".")[2] == error
            assert span.attributes["clew.queue.outcome"] == "rejected"
            assert span.attributes["clew.correlation.id"] == "order-17"
            row = the_record(database, message_id)
            assert (row["queue"], row["status"], row["span_id"]) == ("work", "rejected", span.span_id)
            assert row["error_type"].rpartition(".")[2] == error
        unknown = the_record(database, ids["NotRegistered"])
        assert unknown["type"] == "shop.nobody"
        assert '"colour": "red"' in unknown["payload"]
        assert worker.process.poll() is None
    assert otlp_sink.total("clew.queue.rejected", messaging__destination__name="work") == len(ids)


@pytest.mark.parametrize("body", [b"5", b"null", b"[1]"])
def test_the_message_that_ends_a_worker_is_named(
    captured_telemetry: CapturedTelemetry, valkey_url: str, otlp_sink: OtlpSink, tmp_path: Path, body: bytes
) -> None:
    with CeleryProcess(
        "worker", "-P", "solo", "-l", "info", url=valkey_url, folder=tmp_path, environment=settings(otlp_sink, tmp_path)
    ) as worker:
        worker.wait_until_ready()
        message_id = put(valkey_url, body, task="shop.many")
        eventually(lambda: worker.process.poll() is not None, "Celery's worker ends")
    (span,) = rejected(otlp_sink, message_id)
    assert span.attributes["error.type"] in ("TypeError", "ValueError")
    row = the_record(tmp_path / "history.db", message_id)
    assert (row["status"], row["type"]) == ("rejected", "shop.many")
    assert otlp_sink.total("clew.queue.rejected", messaging__destination__name="work") == 1
