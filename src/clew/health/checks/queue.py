"""Queues in Valkey and Redis: how much waits, and since when. Lists, and streams with or without groups."""

from __future__ import annotations

import re
from collections.abc import Generator
from functools import partial
from typing import Any, Final

from clew.health.check import Check, HealthResult, Status
from clew.health.checks.redis import is_async
from clew.queues.message import SENT_AT_HEADER

# Whatever the envelope is, JSON or binary: the header's name, and a time in seconds soon after it
_SENT_AT: Final = re.compile(re.escape(SENT_AT_HEADER.encode()) + rb"\W{0,12}(\d{9,11}(?:\.\d{1,9})?)")
_MAX_GROUPS: Final = 20

Asking = Generator[tuple[Any, ...], Any, HealthResult]


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
        client: a client of redis-py.
        key: the list or stream.
        group: the consumer group; by default all that the stream has.
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
    asking = _ask(key, group, max_length, max_age_s)
    answer: Any = None
    while True:
        try:
            command = asking.send(answer)
        except StopIteration as done:
            result: HealthResult = done.value
            return result
        answer = client.execute_command(*command)


async def _drive_async(
    client: Any, key: str, group: str | None, max_length: int | None, max_age_s: float | None
) -> HealthResult:
    asking = _ask(key, group, max_length, max_age_s)
    answer: Any = None
    while True:
        try:
            command = asking.send(answer)
        except StopIteration as done:
            result: HealthResult = done.value
            return result
        answer = await client.execute_command(*command)


def _ask(key: str, group: str | None, max_length: int | None, max_age_s: float | None) -> Asking:
    kind = _text((yield ("TYPE", key)))
    if kind not in ("none", "list", "stream"):
        return HealthResult(status="failed", text=f"is a {kind}, not a list or a stream")
    # The server's own clock: messages of streams carry its time
    seconds, micros = yield ("TIME",)
    now_s = int(seconds) + int(micros) / 1e6
    length, oldest_s, problem = 0, None, ""
    if kind == "list":
        length, oldest_s = yield from _list(key)
    elif kind == "stream":
        length, oldest_s, problem = yield from _stream(key, group)
    elif group is not None:
        problem = f"there is no stream yet, and no group {group!r}"
    age_s = max(0.0, now_s - oldest_s) if oldest_s is not None and length else None
    text = f"{length} wait" + (f", the oldest for {age_s:.0f} s" if age_s is not None else "")
    status: Status = "ok"
    if max_length is not None and length > max_length:
        status, text = "degraded", f"{text}; more than {max_length} are too many"
    if max_age_s is not None and age_s is not None and age_s > max_age_s:
        status, text = "degraded", f"{text}; {max_age_s:g} s are too long"
    if problem:
        status, text = "degraded", problem
    return HealthResult(status=status, text=text, data={"length": length, "oldest_age_s": age_s, "kind": kind})


def _list(key: str) -> Generator[tuple[Any, ...], Any, tuple[int, float | None]]:
    length = int((yield ("LLEN", key)))
    # Producers push at either end
    times = []
    for index in (0, -1):
        found = _SENT_AT.search(_bytes((yield ("LINDEX", key, index))))
        if found is not None:
            times.append(float(found.group(1)))
    return length, min(times, default=None)


def _stream(key: str, group: str | None) -> Generator[tuple[Any, ...], Any, tuple[int, float | None, str]]:
    groups = yield ("XINFO GROUPS", key)
    known = [one for one in groups if group is None or _text(one.get("name")) == group]
    if group is not None and not known:
        return 0, None, f"no group {group!r} reads it"
    if not known:
        length = int((yield ("XLEN", key)))
        first = yield ("XRANGE", key, "-", "+", "COUNT", 1)
        return length, _time_of(first[0][0]) if first else None, ""
    backlog, oldest_s = 0, None
    for one in known[:_MAX_GROUPS]:
        pending, last_id = int(one.get("pending") or 0), _text(one.get("last-delivered-id"))
        times = []
        if pending:
            summary = yield ("XPENDING", key, _text(one.get("name")))
            least = summary.get("min") if isinstance(summary, dict) else summary[1]
            if least:
                times.append(_time_of(least))
        undelivered = yield ("XRANGE", key, f"({last_id}", "+", "COUNT", 1)
        if undelivered:
            times.append(_time_of(undelivered[0][0]))
        # None where messages were deleted out of the middle: then at least one waits, if one does
        lag = one.get("lag")
        waiting = pending + (int(lag) if lag is not None else len(undelivered))
        # The slowest group tells
        backlog = max(backlog, waiting)
        oldest_s = min([*times, *([oldest_s] if oldest_s is not None else [])], default=None)
    return backlog, oldest_s, ""


def _time_of(message_id: Any) -> float:
    return int(_text(message_id).partition("-")[0]) / 1000


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value or "").encode("utf-8", "replace")
