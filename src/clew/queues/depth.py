"""How much waits in a queue, and since when: lists and streams of Valkey or Redis, queues of Celery, subjects of NATS JetStream."""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Final

from clew.queues.message import SENT_AT_HEADER

REDIS: Final = "redis"
NATS: Final = "nats"

# Whatever the envelope is, JSON or binary: the header's name, and a time in seconds soon after it
_SENT_AT: Final = re.compile(re.escape(SENT_AT_HEADER.encode()) + rb"\W{0,12}(\d{9,11}(?:\.\d{1,9})?)")
_MAX_GROUPS: Final = 20
# Celery keeps messages of a priority in a list of their own, beside that of the most urgent ones
_CELERY_SUFFIXES: Final = ("", "\x06\x163", "\x06\x166", "\x06\x169")

Asking = Generator[tuple[Any, ...], Any, "Depth"]


@dataclass(frozen=True, kw_only=True)
class Depth:
    """What waits in a queue.

    Attributes:
        kind: what the key is to the server: ``list``, ``stream``, ``none`` where it is empty, or something that is no queue.
        length: messages that wait.
        oldest_age_s: how long the oldest has waited, in seconds; ``None`` where nothing waits, or nothing tells.
        problem: why it is not known.
    """

    kind: str
    length: int = 0
    oldest_age_s: float | None = None
    problem: str = ""

    @property
    def is_queue(self) -> bool:
        """Whether the key is that of a queue, or of none yet."""
        return self.kind in ("none", "list", "stream")


def system_of(client: Any) -> str | None:
    """Return what a client talks to, as ``messaging.system`` of the conventions has it; ``None`` where it is no such client.

    Example:
        >>> from redis import Redis
        >>> system_of(Redis()), system_of("a text")
        ('redis', None)
    """
    if any(kind.__module__.startswith("nats.") for kind in type(client).__mro__):
        return NATS
    return REDIS if hasattr(client, "execute_command") else None


def is_async(client: Any) -> bool:
    """Tell whether a client of redis-py or nats-py is to be awaited."""
    return any(kind.__module__.startswith(("redis.asyncio", "nats.")) for kind in type(client).__mro__)


def measure(client: Any, key: str, *, group: str | None = None, celery: bool = False) -> Depth:
    """Return what waits in a queue.

    Args:
        client: a client of redis-py.
        key: the list or stream.
        group: the consumer group of a stream; by default the one of its groups that is furthest behind.
        celery: whether it is a queue of Celery, which has a list for each priority.
    """
    asking = _ask(key, group, celery=celery)
    answer: Any = None
    while True:
        try:
            command = asking.send(answer)
        except StopIteration as done:
            depth: Depth = done.value
            return depth
        answer = client.execute_command(*command)


async def measure_async(client: Any, key: str, *, group: str | None = None, celery: bool = False) -> Depth:
    """Do as :func:`measure`, with a client that is to be awaited. Of NATS, the key is a subject, and the group a durable consumer."""
    if system_of(client) == NATS:
        from clew.queues import jetstream

        return await jetstream.measure(client, key, consumer=group)
    asking = _ask(key, group, celery=celery)
    answer: Any = None
    while True:
        try:
            command = asking.send(answer)
        except StopIteration as done:
            depth: Depth = done.value
            return depth
        answer = await client.execute_command(*command)


def _ask(key: str, group: str | None, *, celery: bool) -> Asking:
    length, times, problem, kind = 0, [], "", "list"
    for suffix in _CELERY_SUFFIXES if celery else ():
        some, oldest_s = yield from _list(f"{key}{suffix}")
        length += some
        times += [oldest_s] if oldest_s is not None else []
    if not celery:
        kind = _text((yield ("TYPE", key)))
        oldest_s = None
        if kind == "list":
            length, oldest_s = yield from _list(key)
        elif kind == "stream":
            length, oldest_s, problem = yield from _stream(key, group)
        elif kind != "none":
            problem = f"is a {kind}, not a list or a stream"
        elif group is not None:
            problem = f"there is no stream yet, and no group {group!r}"
        times = [oldest_s] if oldest_s is not None else []
    # The server's own clock: messages of streams carry its time
    seconds, micros = yield ("TIME",)
    now_s = int(seconds) + int(micros) / 1e6
    age_s = max(0.0, now_s - min(times)) if times and length else None
    return Depth(kind=kind, length=length, oldest_age_s=age_s, problem=problem)


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
