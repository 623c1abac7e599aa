"""What the messages of tasks tell, and where they go: in their labels, which anyone can write, and by their broker."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from opentelemetry import propagate
from taskiq.abc.broker import AsyncBroker

from clew import clock
from clew.engine.context import extract
from clew.instrumentation.task_run import DUE_AT, EARLIER_TRY, TRIGGER, Told
from clew.queues.message import SENT_AT_HEADER, SOURCE_HEADER, TYPE_HEADER, USER_HEADER, header_of, waited_s

REQUEUES: Final = "X-Taskiq-requeue"
"""The label that says how often a task has been given back before."""

# What says how often it has been tried before
_RETRIES: Final = "_retries"

_SYSTEMS: Final = {
    "taskiq_aio_kafka": "kafka",
    "taskiq_aio_pika": "rabbitmq",
    "taskiq_aio_sqs": "aws_sqs",
    "taskiq_nats": "nats",
    "taskiq_pg": "postgresql",
    "taskiq_postgres": "postgresql",
    "taskiq_redis": "redis",
    "taskiq_valkey": "redis",
    "taskiq.brokers.inmemory_broker": "memory",
    "taskiq.brokers.zmq_broker": "zeromq",
}
# What the several brokers call where they send to
_DESTINATIONS: Final = ("queue_name", "subject", "kafka_topic", "channel_name")
_PERIODIC: Final = frozenset({"cron", "interval"})
_MAX_TRIGGER_LENGTH: Final = 64
_MAX_WAIT_S: Final = 365 * 86_400.0


def labels() -> frozenset[str]:
    """Return the labels that clew writes."""
    return frozenset(
        (
            *propagate.get_global_textmap().fields,
            *(EARLIER_TRY, TRIGGER, DUE_AT, SENT_AT_HEADER, SOURCE_HEADER, TYPE_HEADER, USER_HEADER),
        )
    )


def told_by(labels: Mapping[str, Any], started_at: datetime) -> Told:
    """Read what a message's labels tell. Whatever a stranger wrote into them, there is an answer."""
    attempt = number(labels.get(_RETRIES)) + 1
    waiting_s = waited_s(labels)
    trigger, earlier = labels.get(TRIGGER), labels.get(EARLIER_TRY)
    trigger = trigger[:_MAX_TRIGGER_LENGTH] if isinstance(trigger, str) and attempt == 1 else None
    sent_at = started_at if waiting_s is None else started_at - timedelta(seconds=min(waiting_s, _MAX_WAIT_S))
    return Told(
        carried=extract(labels),
        earlier=extract({"traceparent": earlier}) if isinstance(earlier, str) else None,
        is_periodic=trigger in _PERIODIC,
        trigger=trigger,
        due_at=(_moment(labels.get(DUE_AT)) if trigger is not None else None) or sent_at,
        waited_s=waiting_s,
        attempt=attempt,
        source=header_of(labels, SOURCE_HEADER),
    )


def number(value: Any) -> int:
    """Return a count that a label tells; 0 where it tells none."""
    try:
        return max(0, min(int(value), (1 << 31) - 2))
    except (TypeError, ValueError, OverflowError):
        return 0


def _moment(value: Any) -> datetime | None:
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None


def of_schedule(schedule: Any) -> dict[str, str]:
    """Return what a message says of the schedule that it was sent for."""
    now = clock.utc_now()
    if schedule.cron is not None:
        # The scheduler looks at its crons once a minute
        return {TRIGGER: "cron", DUE_AT: now.replace(second=0, microsecond=0).isoformat()}
    if schedule.interval is not None:
        return {TRIGGER: "interval"}
    due_at = _moment(schedule.time)
    return {TRIGGER: "time", **({DUE_AT: due_at.isoformat()} if due_at is not None else {})}


def system(broker: AsyncBroker) -> str:
    """Return the messaging system of a broker, as ``messaging.system`` has it."""
    for kind in type(broker).__mro__:
        known = _SYSTEMS.get(kind.__module__) or _SYSTEMS.get(kind.__module__.partition(".")[0])
        if known is not None:
            return known
    return "taskiq"


def destination(broker: AsyncBroker, labels: Mapping[str, Any]) -> str:
    """Return where a broker sends a message with these labels."""
    if isinstance(queue := labels.get("queue_name"), str) and queue:
        return queue
    for attribute in _DESTINATIONS:
        if (found := getattr(broker, attribute, None)) is not None:
            return str(getattr(found, "name", found))
    return "taskiq"
