"""A task's message: the headers that clew adds to it, what they tell a worker, and the broker that it goes through."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from clew import clock
from clew.engine.context import Carried, extract, is_valid_correlation_id, with_correlation_id
from clew.instrumentation.task_run import DUE_AT, EARLIER_TRY, TRIGGER, Told
from clew.queues.message import SOURCE_HEADER, header_of, waited_s

RUN_ID: Final = "clew-run-id"
"""The header with the id of the run's record, by which the worker's main process can end it in place of a child that is gone."""

_SYSTEMS: Final = {
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
    "confluentkafka": "kafka",
    "gcpubsub": "gcp_pubsub",
    "pyamqp": "rabbitmq",
    "rediss": "redis",
    "sentinel": "redis",
    "sqs": "aws_sqs",
}
_RUN_ID: Final = re.compile(r"[0-9a-f]{32}")
_MAX_TRIGGER_LENGTH: Final = 64
_MAX_WAIT_S: Final = 365 * 86_400.0


def told_by(message: Mapping[str, Any], started_at: datetime, timezone: Any) -> Told:
    """Read what a message tells. Whatever a stranger wrote into it, there is an answer.

    Args:
        message: its headers, as the task's request has them.
        started_at: when the task started, which was when it was due where nothing is known of that.
        timezone: the app's, for an ETA without one.
    """
    # The older protocol keeps them apart
    inner = message.get("headers")
    headers = {**inner, **message} if isinstance(inner, Mapping) else message
    attempt = _number(message.get("retries")) + 1
    # A retry has the headers of the first try
    is_periodic = bool(headers.get("celery_beat_task")) and attempt == 1
    waiting_s = waited_s(headers)
    eta = _moment(message.get("eta"), timezone)
    earlier, trigger, run_id = headers.get(EARLIER_TRY), headers.get(TRIGGER), headers.get(RUN_ID)
    # A stranger may say that it was before the time of the calendar
    sent_at = started_at if waiting_s is None else clock.utc_now() - timedelta(seconds=min(waiting_s, _MAX_WAIT_S))
    return Told(
        carried=_correlated(extract(headers), message.get("root_id")),
        earlier=extract(earlier) if isinstance(earlier, Mapping) else None,
        is_periodic=is_periodic,
        trigger=trigger[:_MAX_TRIGGER_LENGTH] if is_periodic and isinstance(trigger, str) else None,
        due_at=eta or (_moment(headers.get(DUE_AT), timezone) if is_periodic else None) or sent_at,
        waited_s=waiting_s if eta is None else None,
        attempt=attempt,
        source=header_of(headers, SOURCE_HEADER),
        run_id=run_id if isinstance(run_id, str) and _RUN_ID.fullmatch(run_id) else None,
    )


def _correlated(carried: Carried, root_id: Any) -> Carried:
    """Give the tasks of one workflow, sent without clew, what they have in common."""
    if carried.correlation_id is None and isinstance(root_id, str) and is_valid_correlation_id(root_id):
        return Carried(with_correlation_id(root_id, carried.context))
    return carried


def _number(value: Any) -> int:
    return value if type(value) is int and 0 <= value < 1 << 31 else 0


def _moment(value: Any, timezone: Any) -> datetime | None:
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone)
        return moment.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None


def arguments_of(body: Any) -> dict[str, Any]:
    """Return the arguments of a task, by what a message has, or a worker's request."""
    if isinstance(body, Mapping):
        return {"args": body.get("args"), "kwargs": body.get("kwargs")}
    if isinstance(body, (list, tuple)) and len(body) >= 2:
        return {"args": body[0], "kwargs": body[1]}
    return {"args": None, "kwargs": None}


def destination(exchange: Any, routing_key: Any) -> str:
    """Return where a message goes: its exchange, or the queue where it goes straight to one."""
    return str(getattr(exchange, "name", exchange) or routing_key or "unknown")


def system_of(app: Any) -> str:
    """Return ``messaging.system`` of an app's broker."""
    url = app.conf.broker_write_url or app.conf.broker_url or "amqp"
    if isinstance(url, (list, tuple)):
        url = url[0]
    scheme = urlsplit(str(url)).scheme or str(url).partition(":")[0]
    # Such as "redis+socket" or "sqla+sqlite"
    scheme = scheme.partition("+")[0].lower()
    return _SYSTEMS.get(scheme, scheme)
