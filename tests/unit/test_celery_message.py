"""What a worker reads from a task's message, whoever wrote it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from clew.instrumentation.celery.message import destination, system_of, told_by

NOW = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")

NAMES = st.sampled_from(
    [
        "traceparent",
        "tracestate",
        "x-correlation-id",
        "baggage",
        "clew-sent-at",
        "clew-earlier-try",
        "clew-run-id",
        "clew-due-at",
        "clew-trigger",
        "celery_beat_task",
        "retries",
        "eta",
        "root_id",
        "headers",
        "delivery_info",
        "",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES | st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(message=st.dictionaries(NAMES | st.text(), VALUES))
def test_whatever_a_message_says_there_is_an_answer(message: dict[str, Any]) -> None:
    told = told_by(message, NOW, BERLIN)
    assert told.due_at.tzinfo is UTC
    assert told.attempt >= 1
    assert told.waited_s is None or told.waited_s >= 0
    assert told.trigger is None or len(told.trigger) <= 64
    assert told.run_id is None or len(told.run_id) == 32


@pytest.mark.parametrize(
    ("eta", "due_at"),
    [
        ("2026-11-22T10:00:00+01:00", NOW),
        ("2026-11-22T10:00:00", NOW),
        (datetime(2026, 11, 22, 10), NOW),  # noqa: DTZ001 - an ETA of the app's time zone
        (datetime(2026, 11, 22, 8, tzinfo=UTC), NOW - timedelta(hours=1)),
    ],
)
def test_an_eta_is_when_it_is_due(eta: Any, due_at: datetime) -> None:
    told = told_by({"eta": eta, "clew-sent-at": "1700000000"}, NOW, BERLIN)
    assert (told.due_at, told.waited_s) == (due_at, None)


def test_a_retry_of_a_periodic_task_is_no_periodic_task() -> None:
    message = {"celery_beat_task": True, "clew-trigger": "crontab", "clew-due-at": "2026-11-22T08:00:00+00:00"}
    first, second = (told_by({**message, "retries": retries}, NOW, BERLIN) for retries in (0, 1))
    assert (first.is_periodic, first.trigger, first.due_at) == (True, "crontab", NOW - timedelta(hours=1))
    assert (second.is_periodic, second.trigger, second.due_at) == (False, None, NOW)


@pytest.mark.parametrize(
    ("url", "system"),
    [
        ("redis://localhost:6379/0", "redis"),
        ("rediss://localhost", "redis"),
        ("redis+socket:///run/valkey.sock", "redis"),
        ("sentinel://a:26379;sentinel://b:26379", "redis"),
        ("amqp://guest@localhost//", "rabbitmq"),
        ("pyamqp://", "rabbitmq"),
        (["amqps://a", "amqps://b"], "rabbitmq"),
        ("sqs://", "aws_sqs"),
        ("confluentkafka://localhost:9092", "kafka"),
        ("memory://", "memory"),
        (None, "rabbitmq"),
    ],
)
def test_the_system_is_the_brokers(url: Any, system: str) -> None:
    assert system_of(Celery("shop", broker=url, set_as_current=False)) == system


def test_a_destination_is_a_queue_or_an_exchange() -> None:
    class Exchange:
        name = "orders"

    assert [destination(*where) for where in (("", "work"), (Exchange(), "eu.#"), ("orders", "x"), (None, None))] == [
        "work",
        "orders",
        "orders",
        "unknown",
    ]
