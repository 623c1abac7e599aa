"""Queues: how much waits, and since when. Lists and streams of Valkey and Redis, and subjects of NATS JetStream."""

from __future__ import annotations

from functools import partial
from typing import Any

from clew.health.check import Check, HealthResult, Status
from clew.queues.depth import Depth, is_async, measure, measure_async


def queue(
    client: Any,
    key: str,
    *,
    group: str | None = None,
    name: str | None = None,
    max_length: int | None = None,
    max_age_s: float | None = None,
    critical: bool = False,
    timeout_s: float = 1.0,
) -> Check:
    """Return a check of a queue's backlog and the age of its oldest message.

    Of a stream with groups, what waits is what a group has not been given yet, and what it was given and has not acknowledged;
    of a list, all that is in it, and the age is known where messages carry the header ``clew-sent-at``.

    Args:
        client: a client of redis-py, or a connection of nats-py or its JetStream context.
        key: the list or stream, or the subject.
        group: the consumer group, or the durable consumer; by default all that there are.
        name: the check's name; by default ``queue:`` and the key.
        max_length: messages that may wait; more are degraded. By default any number.
        max_age_s: how old the oldest may be, in seconds; beyond, it is degraded. By default any age.
        critical: see :class:`~clew.health.check.Check`.
        timeout_s: the same.
    """
    probe = _drive_async if is_async(client) else _drive
    return Check(
        name=name or f"queue:{key}",
        probe=partial(probe, client, key, group, max_length, max_age_s),
        critical=critical,
        timeout_s=timeout_s,
    )


def _drive(client: Any, key: str, group: str | None, max_length: int | None, max_age_s: float | None) -> HealthResult:
    return _judged(measure(client, key, group=group), max_length, max_age_s)


async def _drive_async(
    client: Any, key: str, group: str | None, max_length: int | None, max_age_s: float | None
) -> HealthResult:
    return _judged(await measure_async(client, key, group=group), max_length, max_age_s)


def _judged(depth: Depth, max_length: int | None, max_age_s: float | None) -> HealthResult:
    if not depth.is_queue:
        return HealthResult(status="failed", text=depth.problem)
    length, age_s = depth.length, depth.oldest_age_s
    text = f"{length} wait" + (f", the oldest for {age_s:.0f} s" if age_s is not None else "")
    status: Status = "ok"
    if max_length is not None and length > max_length:
        status, text = "degraded", f"{text}; more than {max_length} are too many"
    if max_age_s is not None and age_s is not None and age_s > max_age_s:
        status, text = "degraded", f"{text}; {max_age_s:g} s are too long"
    if depth.problem:
        status, text = "degraded", depth.problem
    return HealthResult(status=status, text=text, data={"length": length, "oldest_age_s": age_s, "kind": depth.kind})
