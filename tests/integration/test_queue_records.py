"""Messages in the history: each send and each try has a row that joins its span, with what was sent, redacted and capped."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from faststream.exceptions import NackMessage, RejectMessage
from faststream.redis import RedisBroker
from pydantic import BaseModel

import clew
from clew.history import recorder as recording
from clew.history import tally
from clew.history.models import QueueMessage, QueueMessageTotal
from clew.queues.message import new_process, new_send
from clew.testing import CapturedTelemetry
from tests.integration.job_history import History, own_history
from tests.integration.waiting import eventually_async


class Document(BaseModel):
    id: int
    password: str = "hunter2"


@pytest.fixture
def history(
    database_url: str, captured_telemetry: CapturedTelemetry, monkeypatch: pytest.MonkeyPatch
) -> Iterator[History]:
    """An empty history that this process's recorder writes to."""
    with own_history(database_url, monkeypatch, heartbeat_s=0.2) as opened:
        yield opened


def messages(history: History, **equal: Any) -> list[dict[str, Any]]:
    writer = recording._recorder
    assert writer is not None
    assert writer.flush(10)
    return [dict(row) for row in history.all(QueueMessage, **equal)]


def through_the_broker(url: str, handle: Callable[[Any], Any], *bodies: Any, **headers: str) -> None:
    """Publish messages one after the other, and wait until each was handled."""
    handled: list[Any] = []

    async def main() -> None:
        broker: RedisBroker = clew.instrument(RedisBroker(url))

        @broker.subscriber(list="documents")
        async def work(body: dict[str, Any]) -> None:
            handled.append(body)
            handle(body)

        async with broker:
            await broker.start()
            for number, body in enumerate(bodies, 1):
                with clew.correlation("order-17"), clew.span("request"):
                    await broker.publish(body, list="documents", headers=headers)
                await eventually_async(lambda number=number: len(handled) == number, "it was handled")  # type: ignore[misc]

    asyncio.run(main())


def test_what_is_sent_and_processed_joins_its_span(
    history: History, captured_telemetry: CapturedTelemetry, valkey_url: str
) -> None:
    through_the_broker(valkey_url, lambda _: None, Document(id=1), **{"clew-user": "u-17"})
    sent, received = messages(history)
    for row, name in ((sent, "send documents"), (received, "process documents")):
        span = captured_telemetry.span(name)
        assert (row["trace_id"], row["span_id"]) == (span.trace_id, span.span_id)
        assert (row["system"], row["queue"], row["correlation_id"]) == ("redis", "documents", "order-17")
        assert (row["type"], row["user_id"]) == ("Document", "u-17")
        assert row["source"] == span.resource["service.name"] == row["service"]
        assert row["payload"] == {"id": 1, "password": "[redacted]"}
        assert row["finished_at"] >= row["started_at"]
        assert row["duration_s"] >= 0
    assert (sent["direction"], sent["status"]) == ("sent", "sent")
    assert (received["direction"], received["status"]) == ("received", "processed")
    assert (received["attempt"], received["messages"]) == (1, 1)
    assert received["size_bytes"] == len(b'{"id":1,"password":"hunter2"}')
    assert received["wait_s"] >= 0
    assert abs((received["sent_at"] - sent["finished_at"]).total_seconds()) < 5


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError("no such topic"), "failed"), (NackMessage(), "rejected"), (RejectMessage(), "rejected")],
)
def test_what_became_of_a_message_is_told(history: History, valkey_url: str, error: Exception, status: str) -> None:
    def fail(_: Any) -> None:
        raise error

    through_the_broker(valkey_url, fail, {"type": "document.uploaded"})
    _, received = messages(history)
    assert (received["status"], received["type"]) == (status, "document.uploaded")
    if status == "failed":
        assert (received["error_type"], received["error_message"]) == ("ValueError", "no such topic")


def test_a_message_that_nobody_can_read_is_told(history: History, valkey_url: str) -> None:
    async def main() -> None:
        broker: RedisBroker = clew.instrument(RedisBroker(valkey_url))

        @broker.subscriber(list="documents")
        async def work(body: Document) -> None:
            raise AssertionError

        async with broker:
            await broker.start()
            await broker.publish("no document", list="documents")
            await eventually_async(lambda: bool(clew.summary("clew.queue.rejected")), "the message was rejected")

    asyncio.run(main())
    assert [row["status"] for row in messages(history, direction="received")] == ["rejected"]


def test_a_broker_that_is_away_is_told(history: History) -> None:
    async def main() -> None:
        broker: RedisBroker = clew.instrument(RedisBroker("redis://127.0.0.1:9"))
        async with broker:
            await broker.publish({}, list="documents")

    with pytest.raises(Exception, match="onnect"):
        asyncio.run(main())
    rows = messages(history)
    # FastStream may connect before it publishes
    assert all((row["status"], row["direction"]) == ("failed", "sent") for row in rows)


def test_a_send_that_is_cancelled_is_neither_sent_nor_failed(
    history: History, captured_telemetry: CapturedTelemetry
) -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def send() -> None:
            async with clew.message_send("documents", {"id": 1}):
                begun.set()
                await asyncio.Event().wait()

        sending = asyncio.create_task(send())
        await begun.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending

    asyncio.run(main())
    (row,) = messages(history)
    assert (row["status"], row["direction"], row["error_type"]) == ("cancelled", "sent", "cancelled")
    span = captured_telemetry.span("send documents")
    assert (span.status, span.attributes["error.type"]) == ("unset", "cancelled")
    assert captured_telemetry.metric("messaging.client.sent.messages").labels["error.type"] == "cancelled"
    (total,) = {row["status"] for row in history.all(QueueMessageTotal)}
    assert total == "cancelled"


def test_each_try_of_a_hand_made_message_has_a_record_and_so_has_what_nobody_can_read(
    history: History, captured_telemetry: CapturedTelemetry, valkey_url: str
) -> None:
    unreadable = [b'{"password": "hunter2", ', b"x" * 50_000, b'{"clew": 1, "headers": {"traceparent": 1}}']
    with redis.Redis.from_url(valkey_url) as client:

        def put(raw: bytes) -> None:
            client.lpush("documents", raw)

        def taken(**more: Any) -> Any:
            return clew.message_process("documents", client.rpop("documents"), max_bytes=20_000, **more)

        body = {"id": 1, "password": "hunter2"}
        with clew.correlation("order-17"), clew.message_send("documents", body, type="page", user="ä") as envelope:
            put(envelope.encode())
        with taken(group="workers") as first:
            put(first.retry())
        with taken() as second:
            second.dead_letter("no_topic")
        put(b'{"id": 2}')
        with taken():
            pass
        for raw in unreadable:
            put(raw)
            with pytest.raises(clew.MessageError):
                taken()
    rows = messages(history)
    spans = {(span.trace_id, span.span_id): span for span in captured_telemetry.spans}
    assert {spans[row["trace_id"], row["span_id"]].name for row in rows} == {"send documents", "process documents"}
    known = {row["status"]: row for row in rows if row["status"] != "rejected"}
    assert set(known) == {"sent", "returned", "dead_lettered", "processed"}
    for status, attempt in (("sent", 1), ("returned", 1), ("dead_lettered", 2)):
        row = known[status]
        assert (row["type"], row["user_id"], row["message_id"]) == ("page", "?", envelope.id)
        assert (row["correlation_id"], row["attempt"]) == ("order-17", attempt)
        assert row["payload"] == {"id": 1, "password": "[redacted]"}
    assert [known[status]["envelope"] for status in ("returned", "dead_lettered", "processed")] == [
        "clew",
        "clew",
        "plain",
    ]
    assert (known["returned"]["consumer_group"], known["returned"]["direction"]) == ("workers", "received")
    assert known["dead_lettered"]["error_type"] == "no_topic"
    assert (known["processed"]["payload"], known["processed"]["source"], known["processed"]["sent_at"]) == (
        {"id": 2},
        None,
        None,
    )
    rejected = [row for row in rows if row["status"] == "rejected"]
    assert len(rejected) == len(unreadable)
    assert {row["error_type"] for row in rejected} == {"MessageError"}
    assert all("hunter2" not in str(row["payload"]) and len(str(row["payload"])) < 20_000 for row in rejected)
    (total,) = history.all(QueueMessageTotal, grain="day", status="rejected")
    assert total["messages"] == len(unreadable)


@dataclasses.dataclass
class Note:
    text: str


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (b'{"api_key": "sk-1234567890abcdef1234"}', {"api_key": "[redacted]"}),
        ("token=abcdef123456", "token=[redacted]"),
        (b"\xff\x00", "\\xff\ufffd"),
        (b"[" * 5_000, "[" * 5_000),
        (Note("hello"), {"text": "hello"}),
        ({1: {"\ud800": 1}}, {"1": {"?": 1}}),
        ([b'{"a": 1}', b"x"], [{"a": 1}, "x"]),
        (None, None),
        (b"x" * 50_000, {"clew.truncated": True, "bytes": 50_000}),
        ({"text": "x" * 50_000}, {"clew.truncated": True}),
    ],
)
def test_any_body_can_be_kept(history: History, body: Any, kept: Any) -> None:
    with new_send("redis", "documents") as sending:
        sending.body = body
    (row,) = messages(history)
    if isinstance(kept, dict) and "clew.truncated" in kept:
        assert kept.items() <= row["payload"].items()
        assert len(json.dumps(row["payload"])) < 20_000
    else:
        assert row["payload"] == kept


def test_a_body_that_changes_afterwards_is_kept_as_it_was(history: History) -> None:
    body = {"items": [1, 2]}
    with new_send("redis", "documents") as sending:
        sending.body = body
    body["items"].append(3)
    (row,) = messages(history)
    assert row["payload"] == {"items": [1, 2]}


def test_payloads_can_be_off(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = recording._recorder
    assert writer is not None
    monkeypatch.setattr(writer, "settings", writer.settings.model_copy(update={"message_payloads": False}))
    with new_send("redis", "documents") as sending:
        sending.body = {"a": 1}
    (row,) = messages(history)
    assert (row["payload"], row["status"]) == (None, "sent")


def test_a_batch_is_one_row_and_as_many_messages(history: History) -> None:
    headers = []
    for number in range(3):
        with new_send("redis", "documents", {"clew.queue.type": "page"}) as sending:
            sending.body = number
            headers.append(sending.headers())
    with new_process("redis", "documents", headers):
        pass
    (received,) = messages(history, direction="received")
    assert (received["messages"], received["type"]) == (3, "page")
    (total,) = history.all(QueueMessageTotal, direction="received", grain="hour")
    assert (total["messages"], total["waits"], total["status"]) == (3, 3, "processed")


def test_what_producers_make_up_does_not_fill_the_totals(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "_known", {"queue": set(), "type": set(), "source": set()})
    number = tally.MAX_DISTINCT + 20
    for index in range(number):
        with new_process("redis", "documents", {"clew-type": f"t{index}"}):
            pass
    assert len({row["type"] for row in messages(history)}) == number
    totals = history.all(QueueMessageTotal, grain="day")
    assert len(totals) == tally.MAX_DISTINCT + 1
    assert sum(total["messages"] for total in totals) == number
    assert {total["type"]: total["messages"] for total in totals}[tally.OTHER] == 20


def test_hostile_headers_are_bounded(history: History) -> None:
    hostile: dict[Any, Any] = {
        "clew-type": "x" * 100_000 + "\x00",
        b"clew-source": b"\xff" * 400,
        "clew-user": ["no", "text"],
        "clew-sent-at": "-1e308",
    }
    with new_process("redis" * 20, "q" * 1_000, hostile, {"messaging.message.id": "\x00" * 300}):
        pass
    (row,) = messages(history)
    assert row["status"] == "processed"
    assert len(row["type"]) <= 255
    assert len(row["source"].encode()) <= 255
    assert row["user_id"] is None
