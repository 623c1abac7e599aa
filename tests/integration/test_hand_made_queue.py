"""A queue of one's own over a Redis list: two lines on each side, and what becomes of envelopes that are none."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

import clew
from clew import diagnostics
from clew.testing import CapturedTelemetry

log = clew.get_logger("worker")


def push(client: Any, body: Any) -> None:
    envelope = {"headers": clew.inject({}), "body": body}
    client.rpush("orders", json.dumps(envelope))


def work(client: Any, done: list[Any]) -> None:
    """Take orders off the list until there are no more: what any hand-made consumer does."""
    while (item := client.blpop(["orders"], timeout=0.2)) is not None:
        try:
            envelope = json.loads(item[1])
            headers, body = envelope["headers"], envelope["body"]
        except (ValueError, TypeError, KeyError, RecursionError):
            log.exception("envelope.rejected", size_bytes=len(item[1]))
            continue
        with clew.extract(headers), clew.span("work"):
            done.append((body, clew.correlation_id(), clew.trace_id()))


@pytest.fixture
def client(captured_telemetry: CapturedTelemetry, valkey_url: str) -> Iterator[Any]:
    # As in production: nonsense is counted and logged, and raises nothing
    diagnostics.set_strict(strict=False)
    with redis.Redis.from_url(valkey_url) as made:
        yield clew.instrument(made)


def run_worker(client: Any) -> list[Any]:
    done: list[Any] = []
    worker = threading.Thread(target=work, args=(client, done))
    worker.start()
    worker.join(30)
    assert not worker.is_alive()
    return done


def test_the_thread_goes_through_the_list(captured_telemetry: CapturedTelemetry, client: Any) -> None:
    with clew.correlation("order-17"), clew.span("request"):
        push(client, 1)
    ((body, cid, trace_id),) = run_worker(client)
    request = captured_telemetry.span("request")
    assert (body, cid, trace_id) == (1, "order-17", request.trace_id)
    assert captured_telemetry.span("work").parent_id == request.span_id
    # The worker's polls make no traces of their own
    assert [span.name for span in captured_telemetry.spans] == ["RPUSH", "request", "work"]


def test_malformed_envelopes_stop_nobody_and_lose_nothing(
    captured_telemetry: CapturedTelemetry, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with clew.correlation("first"), clew.span("request"):
        push(client, 1)
    rejected: list[bytes] = [b"{not json", b"\xff\xfe", b"[1, 2]", b"17", b"{}", b'{"headers": ' + b"[" * 2_000]
    for raw in rejected:
        client.rpush("orders", raw)
    odd_headers: list[Any] = [7, "text", [1], None, {"traceparent": "x" * 10_000_000}, {"traceparent": 5}]
    for headers in odd_headers:
        client.rpush("orders", json.dumps({"headers": headers, "body": "odd"}))
    with clew.correlation("last"), clew.span("request"):
        push(client, 2)

    done = run_worker(client)
    assert [body for body, _, _ in done] == [1, *["odd"] * len(odd_headers), 2]
    assert (done[0][1], done[-1][1]) == ("first", "last")
    # Each of the odd ones has a thread of its own
    assert len({trace_id for _, _, trace_id in done}) == len(done)
    said = [record.body for record in captured_telemetry.logs if record.severity == "ERROR"]
    assert said == ["envelope.rejected"] * len(rejected)
    warned = [record.getMessage() for record in caplog.records if record.name == "clew"]
    assert len(warned) == 1
    assert warned[0].startswith("extract: a carrier is a mapping, not a int")
    assert diagnostics.problems()["extract"] == 3
